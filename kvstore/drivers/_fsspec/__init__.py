"""What the fsspec driver is made of: keys as objects, their names, their listing, and stores for them: S3 and any other."""
