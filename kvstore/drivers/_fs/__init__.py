"""What the file driver is made of: directory and lock, files, open folders, expiry markers, the walk through all, names."""
