"""What PostgreSQL and MySQL share: connections, statements, transactions and conditions."""
