"""What the diskcache driver is made of: statements, the schema, transactions and errors."""
