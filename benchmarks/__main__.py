"""`python -m benchmarks [--quick] [NAME ...]`: each figure, its limit, and what it was measured against.

Ratios within one run count; the absolute times go by the machine and by what else it does. The exit status is 1 where
a figure is over its limit.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import sys

NAMES = ("imports", "memory", "sqlite", "listing", "sessions", "pauses")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds and smaller stores")
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NAMES))
    options = parser.parse_args()
    if unknown := set(options.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    held = True
    for name in options.names or NAMES:
        print(name, flush=True)
        for figure in asyncio.run(importlib.import_module(f"benchmarks.{name}").figures(quick=options.quick)):
            print(" ", figure, flush=True)
            held = held and figure.holds
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
