"""What the file driver is made of: directory and lock, one file, expiry markers, the walk through the tree, names."""
