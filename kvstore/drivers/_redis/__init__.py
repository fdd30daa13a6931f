"""What the Redis driver is made of: the scripts that run on the server."""
