"""What the Redis driver is made of: URL, connections, scripts that run on the server, large values, changes, errors."""
