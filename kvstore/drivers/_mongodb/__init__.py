"""What the MongoDB driver is made of: the client, documents, writes of one each, transactions on several."""
