"""What the SQLite driver is made of: statements, the schema, transactions and errors."""
