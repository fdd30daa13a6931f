"""The pictures of the page. kvstore is blue and thick, what is raw is grey and dashed."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from PIL import Image

mpl.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.ticker import LogLocator, NullLocator

from benchmarks.peers.catalogue import GROUPS
from benchmarks.plan import CONCURRENCY, SIZES
from benchmarks.quantities import measure
from benchmarks.results import Part, Results, Row

OURS = "#0b5fff"
RAW = ("#555555", "#999999")
PEERS = ("#d1495b", "#edae49", "#2a9d8f", "#8e5ea2", "#7a5230", "#e377c2")
MARKS = "osD^vP"


def draw(results: Results, folder: Path) -> dict[str, Path]:
    """Draws what there are figures for. Returns the files by part."""
    plt.rcParams.update({
        "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
        "axes.titlesize": 12, "axes.titleweight": "bold", "figure.dpi": 100,
    })  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {}
    for group in GROUPS:
        part = results.parts.get(group.name)
        if part and any(row.cells for row in part.rows.values()):
            figure = _sessions(part) if group.kind == "sessions" else _stores(part)
            pictures[group.name] = _save(figure, folder / f"{group.name}.png")
    for name in ("footprint", "imports"):
        if part := results.parts.get(name):
            pictures[name] = _save(_bars(part), folder / f"{name}.png")
    if (figure := _glance(results)) is not None:
        pictures["glance"] = _save(figure, folder / "glance.png")
    return pictures


def _save(figure: Any, path: Path) -> Path:
    """With a palette, which takes a quarter of the bytes."""
    drawn = BytesIO()
    figure.savefig(drawn, bbox_inches="tight")
    plt.close(figure)
    Image.open(drawn).convert("RGB").quantize(64).save(path, optimize=True)
    return path


def _styles(part: Part) -> dict[str, dict[str, Any]]:
    styles: dict[str, dict[str, Any]] = {}
    for at, name in enumerate(part.named("ours")):
        styles[name] = {"color": OURS, "linewidth": 3.2, "zorder": 5, "marker": "o", "linestyle": ("-", "--")[at % 2]}
    for at, name in enumerate(part.named("raw")):
        styles[name] = {"color": RAW[at % 2], "linewidth": 2, "linestyle": "--", "marker": "x"}
    for at, name in enumerate(part.named("peer")):
        styles[name] = {"color": PEERS[at % len(PEERS)], "linewidth": 1.8, "marker": MARKS[at % len(MARKS)]}
    return styles


def _stores(part: Part) -> Any:
    """Cost against size above, throughput against concurrency below."""
    figure, axes = plt.subplots(2, 2, figsize=(11, 8), sharex="row")
    for column, do in enumerate(("set", "get")):
        above, below = axes[0][column], axes[1][column]
        for name, style in _styles(part).items():
            sizes = [(size, part.row(f"{do}-{size}").median(name)) for size, _ in SIZES]
            _line(above, sizes, name, style)
            tasks = [(1, part.row(f"{do}-200").median(name))]
            tasks += [(count, part.row(f"{do}-tasks-{count}").median(name)) for count in CONCURRENCY]
            _line(below, [(count, time and 1e6 / time) for count, time in tasks], name, style)
        above.set(xscale="log", yscale="log", title=f"{do}, one after another: lower is better", xlabel="size of a value")
        above.set_xticks([size for size, _ in SIZES], [label for _, label in SIZES])
        below.set(xscale="log", yscale="log", title=f"{do}, many at once: higher is better", xlabel="tasks at once")
        below.set_xticks([1, *CONCURRENCY], ["1", *(f"{count:,}" for count in CONCURRENCY)])
        above.minorticks_off(), below.minorticks_off()
        _logarithmic(above, _tick)
        _logarithmic(below, lambda value, _: f"{value:,.0f}")
    axes[0][0].set_ylabel("time a call")
    axes[1][0].set_ylabel("calls a second")
    return _finish(figure, axes[0][0], part.title)


def _logarithmic(axis: Any, label: Callable[[float, object], str]) -> None:
    axis.yaxis.set_major_locator(LogLocator(subs=(1, 3)))
    axis.yaxis.set_major_formatter(label)
    axis.yaxis.set_minor_locator(NullLocator())


def _tick(value: float, _: object) -> str:
    number, unit = measure(value, "µs").split()
    return f"{float(number):g} {unit}"


def _line(axis: Any, points: list[tuple[int, float | None]], name: str, style: dict[str, Any]) -> None:
    there = [(x, y) for x, y in points if y]
    if there:
        axis.plot(*zip(*there, strict=True), label=name, markersize=6, **style)


def _finish(figure: Any, axis: Any, title: str) -> Any:
    handles, labels = axis.get_legend_handles_labels()
    figure.suptitle(title, x=0.02, ha="left", fontsize=15, fontweight="bold")
    figure.tight_layout(rect=(0, 0.02 + 0.035 * (1 + len(labels) // 5), 1, 1))
    figure.legend(handles, labels, loc="lower center", ncol=max(1, min(5, len(labels))), frameon=False)
    return figure


def _sessions(part: Part) -> Any:
    figure, axes = plt.subplots(1, 4, figsize=(17, 5), width_ratios=(1.6, 1, 1, 1))
    styles = _styles(part)
    for name, cell in part.row("append").cells.items():
        if cell.get("each"):
            _line(axes[0], list(zip(cell["at"], cell["each"], strict=True)), name, {**styles[name], "marker": ""})
    axes[0].set(yscale="log", title="append: lower is better", xlabel="messages in the session", ylabel="time a message")
    _logarithmic(axes[0], _tick)
    for axis, row in zip(axes[1:], ("append-64", "last", "disk"), strict=True):
        _barh(axis, part.row(row), styles)
    return _finish(figure, axes[0], part.title)


def _barh(axis: Any, row: Row, styles: dict[str, dict[str, Any]]) -> None:
    """Sorted bars with their values at the ends, the best on top."""
    found = sorted(((value, name) for name in styles if (value := row.median(name))), reverse=True)
    if not found:
        return
    values, names = zip(*found, strict=True)
    bars = axis.barh(names, values, color=[styles[name]["color"] for name in names])
    axis.bar_label(bars, [measure(value, row.unit) for value in values], padding=3, fontsize=9)
    if max(values) > 10 * min(values):
        axis.set(xscale="log", xlim=(min(values) / 3, max(values) * 8), xlabel="logarithmic")
    else:
        axis.set(xlim=(0, max(values) * 1.35))
    axis.set_title(row.title)
    axis.set_xticks([])
    axis.minorticks_off()
    axis.tick_params(axis="y", labelsize=9)
    axis.grid(visible=False, axis="y")


def _bars(part: Part) -> Any:
    figure, axis = plt.subplots(figsize=(9, 0.9 + 0.38 * len(part.peers)))
    ours = part.named("ours")
    _barh(
        axis,
        next(iter(part.rows.values())),
        {peer["name"]: {"color": OURS if peer["name"] in ours else "#b8bcc4"} for peer in part.peers},
    )
    figure.tight_layout()
    return figure


GLANCE = (
    "set-200",
    "get-200",
    "set-tasks-1000",
    "get-tasks-1000",
    "list-10000",
    "list-2000",
    "append",
    "append-64",
    "last",
    "all",
)


def _glance(results: Results) -> Any:
    """Every library's time against ours, a line a kind of work: right of 1 it is slower than kvstore."""
    lines: list[tuple[str, dict[str, float]]] = []
    for group in GROUPS:
        part = results.parts.get(group.name)
        for row in map(part.row, GLANCE) if part else ():
            if part and (ours := row.median(part.ours)):
                ratios = {name: time / ours for name in part.named("peer") if (time := row.median(name))}
                if ratios:
                    lines.append((f"{part.title}: {row.title}", ratios))
    if not lines:
        return None
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.28 * len(lines)))
    for at, (_, ratios) in enumerate(reversed(lines)):
        low, high = min(ratios.values()), max(ratios.values())
        axis.plot([low, high], [at, at], color="#cccccc", linewidth=2, zorder=1)
        colors = ["#2a9d8f" if ratio > 1 else "#d1495b" for ratio in ratios.values()]
        axis.scatter(ratios.values(), [at] * len(ratios), c=colors, s=38, zorder=3)
        faster = ", ".join(sorted((name for name in ratios if ratios[name] <= 1), key=lambda name: ratios[name]))
        axis.text(1.01, at, faster, transform=axis.get_yaxis_transform(), va="center", fontsize=8, color="#d1495b")
    axis.axvline(1, color=OURS, linewidth=2.5)
    axis.set_ylim(-0.7, len(lines) - 0.3)
    axis.set_yticks(range(len(lines)), [title for title, _ in reversed(lines)], fontsize=9)
    axis.set(xscale="log", xlabel="times the time of kvstore, a dot a library")
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.set_title("Each library against kvstore: green is slower, red and named is faster", loc="left")
    return figure
