"""What the SQLite driver is made of: the file and its threads, rows, statements, the schema, transactions, errors."""
