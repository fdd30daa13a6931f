"""What the MongoDB driver is made of: the client, the documents, and transactions on them."""
