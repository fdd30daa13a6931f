"""kvstore beside its peers, measured: `make bench`."""
