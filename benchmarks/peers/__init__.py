"""What is compared: one small module a family, behind the two interfaces of `contract`."""
