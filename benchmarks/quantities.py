"""How a figure is written."""

from __future__ import annotations


def measure(value: float, unit: str) -> str:
    if unit == "bytes":
        return f"{value:,.0f} bytes"
    if unit == "MB":
        return f"{value:.1f} MB"
    if unit == "ms":
        value *= 1000
    for limit, size, name in ((1, 1e-3, "ns"), (1_000, 1, "µs"), (1_000_000, 1e3, "ms")):
        if value < limit:
            return f"{digits(value / size)} {name}"
    return f"{digits(value / 1e6)} s"


def digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.1f}" if value < 100 else f"{value:.0f}"
