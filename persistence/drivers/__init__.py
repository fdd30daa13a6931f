"""One module a driver, with one function that makes it; each imports its own driver and no other."""
