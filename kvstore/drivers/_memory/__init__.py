"""What the memory driver is made of: its lock, and what expires when."""
