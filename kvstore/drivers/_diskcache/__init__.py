"""What the diskcache driver is made of: the statements for diskcache's table, and the files of large values."""
