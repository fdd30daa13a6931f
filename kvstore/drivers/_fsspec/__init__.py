"""Rooms of the fsspec driver."""
