"""The figures that the README claims, measured: `python -m benchmarks`."""
