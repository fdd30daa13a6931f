"""`docs/benchmarks.md` from the results of a run: `python -m benchmarks.report`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from benchmarks import plots
from benchmarks.environments import HERE, ROOT
from benchmarks.peers.catalogue import GROUPS
from benchmarks.quantities import digits, measure
from benchmarks.results import Part, Results, Row
from benchmarks.targets import Verdict, verdicts

INTRODUCTION = """\
# Benchmarks

Written by `make bench`, which measures everything here anew on your machine. Ratios within one run count; the times go by the
machine and by what else it does.

## How it is measured

- Every peer runs in a process of its own, in an environment of its own with pinned versions. Only one works at a time, and in
  every round another is first. The first round is not counted. Servers run on one half of the processors and their clients on
  the other: where a client wakes up on its server's processor, a call takes half the time, and that is luck.
- A time is the median of the rounds; ± is half of their interquartile range. Values are JSON of the size said, of random text,
  and differ in every round. What is read is checked.
- Within a section all give the same promise about a power cut when a call returns; the section says which.
- **Bold** is the fastest or smallest of a row, raw clients left out.
- –: the library has no such call, or writing so many keys first takes it too long.
- *Raw* is the least code that does the work with the bare client. Where it is called in the event loop it holds the loop, so
  that its times are a floor rather than a way to write a service.
- A pause is the longest time between two passes of the event loop, seen by a task that does nothing else, in rounds of
  their own. A client that never waits (a dict, sqlite3 in the loop) holds it for all of a round of about 0.1 s.
- unstorage is written in JavaScript and runs on Node, all others run on Python.
"""

LEVEL = 1.05
"""Two times that differ by less are called level."""
SIZES = ("MB", "bytes")
"""The units of what is no time."""


def write(results_folder: Path, page: Path) -> str:
    """Writes the page and its pictures. Returns a short text for the terminal: what holds and what does not."""
    results = Results(results_folder)
    found = verdicts(results)
    pictures = plots.draw(results, page.parent / page.stem)
    page.parent.mkdir(parents=True, exist_ok=True)
    page.write_text("\n".join(_page(results, found, pictures)).replace("\n\n\n", "\n\n") + "\n")
    return "\n".join(f"{_said(verdict):12} {verdict.what}: {verdict.found} (wanted: {verdict.wanted})" for verdict in found)


def _page(results: Results, found: list[Verdict], pictures: dict[str, Path]) -> Iterator[str]:
    yield INTRODUCTION
    yield from _machine(results)
    if "glance" in pictures:
        yield from _picture(pictures["glance"], "Each library's time against kvstore's")
    yield from _held(found)
    order = [*(group.name for group in GROUPS), "mounts", "footprint", "imports"]
    for name in order:
        if name in results.parts:
            yield from _part(results.parts[name], pictures)
    yield from _failures(results)


def _machine(results: Results) -> Iterator[str]:
    if not (machine := results.machine):
        return
    if machine["quick"]:
        yield "**From a quick run: few rounds and small stores, good for a look and no more.**"
        yield ""
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    changed = " with changes that are not committed" if machine["changed"] else ""
    what = [
        f"This run: {machine['date']}, commit `{machine['commit']}`{changed}, {machine['seconds'] / 60:.0f} minutes",
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"{machine['system']}, files on {machine['disk']}",
        f"Python {machine['python']}, Node {machine['node'] or '–'}",
        versions,
    ]
    yield f"{'; '.join(what)}."
    yield ""


def _held(found: list[Verdict]) -> Iterator[str]:
    held = sum(verdict.holds is True for verdict in found)
    missed = sum(verdict.holds is False for verdict in found)
    open_ = len(found) - held - missed
    yield "## Held / missed"
    yield ""
    yield f"Of what this project wants to hold against its peers, {held} held, {missed} missed, {open_} not measured."
    yield ""
    yield "| | wanted | found | |"
    yield "| --- | --- | --- | --- |"
    for verdict in sorted(found, key=lambda verdict: verdict.holds is not False):  # what was missed comes first
        yield f"| {verdict.what} | {verdict.wanted} | {_cell(verdict.found)} | {_said(verdict)} |"
    yield ""
    tried: dict[str, list[str]] = {}
    for verdict in found:
        if verdict.holds is False and verdict.tried:
            tried.setdefault(verdict.tried, []).append(verdict.what)
    if tried:
        yield "Why it is so, and what was tried:"
        yield ""
        yield from (f"- {'; '.join(what)}. {text}" for text, what in tried.items())
        yield ""


def _said(verdict: Verdict) -> str:
    return {True: "held", False: "**missed**", None: "not measured"}[verdict.holds]


def _part(part: Part, pictures: dict[str, Path]) -> Iterator[str]:
    yield f"## {part.title}"
    yield ""
    if part.durability:
        yield part.durability
        yield ""
    notes = [f"{peer['name']}: {peer['note']}" for peer in part.peers if peer["note"] and part.name != "imports"]
    if notes:
        yield f"{'; '.join(notes)}."
        yield ""
    if part.name in pictures:
        yield from _picture(pictures[part.name], part.title)
    yield from _winners(part)
    yield from _times(part)
    if len(part.named("ours")) == 1:
        yield from _ratios(part)
    yield from _pauses(part)
    yield from _contended(part)


def _picture(path: Path, title: str) -> Iterator[str]:
    yield f"![{title}]({path.parent.name}/{path.name})"
    yield ""


def _columns(part: Part) -> list[str]:
    """Ours, the raw clients, the others; those of which nothing was measured are named at the end of the page."""
    names = [name for role in ("ours", "raw", "peer") for name in part.named(role)]
    return [name for name in names if any(name in row.cells for row in part.rows.values())]


def _times(part: Part) -> Iterator[str]:
    """Peers as columns; where there is but one kind of work, as rows."""
    names = _columns(part)
    rows = list(part.rows.values())
    if len(rows) == 1:
        yield f"| | {rows[0].title} |"
        yield "| --- | --- |"
        for name in sorted(names, key=lambda name: rows[0].median(name) or float("inf")):
            yield f"| {name} | {_time(rows[0], name, None)} |"
        yield ""
        return
    yield f"| | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for row in rows:
        best = _fastest(row, [name for name in names if name not in part.named("raw")])
        yield f"| {row.title} | {' | '.join(_time(row, name, best) for name in names)} |"
    yield ""


def _time(row: Row, name: str, best: str | None) -> str:
    """Bold for the fastest that is no raw client."""
    value = row.median(name)
    if value is None:
        return "failed" if "error" in row.cells.get(name, {}) else "–"
    spread = row.spread(name)
    text = measure(value, row.unit)
    text = f"**{text}**" if name == best else text
    return text if spread is None else f"{text} ±{spread:.0%}"


def _fastest(row: Row, names: list[str]) -> str | None:
    measured = {name: value for name in names if (value := row.median(name)) is not None}
    return min(measured, key=lambda name: measured[name], default=None)


def _ratios(part: Part) -> Iterator[str]:
    """Times and sizes, divided by ours and by the raw client's."""
    others = [name for name in _columns(part) if name != part.ours]
    rows = [row for row in part.rows.values() if row.median(part.ours)]
    if not others or not rows:
        return
    raw = f", and by that of {part.raw} (second)" if part.raw else ""
    better = "smaller" if all(row.unit in SIZES for row in rows) else "faster"
    yield f"<details><summary>Divided by the figure of kvstore (first; above 1 kvstore is {better}){raw}</summary>"
    yield ""
    yield f"| | kvstore | {' | '.join(others)} |"
    yield f"| --- |{' --- |' * (len(others) + 1)}"
    for row in rows:
        yield f"| {row.title} | {' | '.join(_against(part, row, name) for name in [part.ours, *others])} |"
    yield ""
    yield "</details>"
    yield ""


def _against(part: Part, row: Row, name: str) -> str:
    value, ours = row.median(name), row.median(part.ours)
    if value is None or not ours:
        return "–"
    raw = row.median(part.raw) if part.raw else None
    return f"{digits(value / ours)} / {digits(value / raw)}" if raw else digits(value / ours)


def _winners(part: Part) -> Iterator[str]:
    """In words: where a library is ahead of ours."""
    found = {ours: _compared(part, ours) for ours in part.named("ours")} if part.named("peer") else {}
    if len(found) > 1 and all(ahead and not behind for ahead, behind in found.values()):  # once for all of ours
        found = {"kvstore": next(iter(found.values()))}
    for ours, (ahead, behind) in found.items():
        if ahead + len(behind) == 0:
            yield f"{ours} has no figures here."
        elif not behind:
            yield f"No other library is ahead of {ours} in any of these {ahead} kinds of work."
        else:
            if ahead:
                yield f"In {ahead} of {ahead + len(behind)} kinds of work no other library is ahead of {ours}. Behind:"
            else:
                yield f"{ours} is behind:"
            yield ""
            yield from (f"- {line}." for line in behind)
        yield ""


def _compared(part: Part, ours: str) -> tuple[int, list[str]]:
    """In how many kinds of work no library is ahead of `ours`, and in words those where one is."""
    ahead, behind = 0, []
    for row in part.rows.values():
        best, own = _fastest(row, part.named("peer")), row.median(ours)
        if best is None or own is None:
            continue
        theirs = row.median(best) or 0.0
        if own > theirs * LEVEL:
            times = own / theirs if theirs else 0.0
            long = "much" if row.unit in SIZES else "long"
            behind.append(f"{row.title}: {best} wins, {ours} takes {digits(times)} times as {long}")
        else:
            ahead += 1
    return ahead, behind


def _pauses(part: Part) -> Iterator[str]:
    names = [name for name in _columns(part) if any(row.pause(name) is not None for row in part.rows.values())]
    rows = [row for row in part.rows.values() if any(row.pause(name) is not None for name in names)]
    if not rows:
        return
    yield "<details><summary>Longest pause of the event loop, ms</summary>"
    yield ""
    yield f"| | {' | '.join(names)} |"
    yield f"| --- |{' --- |' * len(names)}"
    for row in rows:
        pauses = [row.pause(name) for name in names]
        yield f"| {row.title} | {' | '.join('–' if pause is None else f'{pause:.1f}' for pause in pauses)} |"
    yield ""
    yield "</details>"
    yield ""


def _contended(part: Part) -> Iterator[str]:
    if not part.contended:
        return
    wanted = next((found["wanted"] for found in part.contended.values() if "wanted" in found), 0)
    yield f"Four processes append {wanted // 4} messages each to one session at the same time:"
    yield ""
    yield "| | stored | lost | refused | doubled | out of order | |"
    yield "| --- | --- | --- | --- | --- | --- | --- |"
    for name, found in part.contended.items():
        if "error" in found:
            yield f"| {name} | – | – | – | – | – | {_cell(found['error'])} |"
        else:
            counts = " | ".join(f"{found[what]:,}" for what in ("stored", "lost", "refused", "doubled", "out_of_order"))
            yield f"| {name} | {counts} | {_cell(found['reason'])} |"
    yield ""
    yield "Lost: the call returned, and the message is not there. Refused: the call raised an error. Out of order: steps back"
    yield "within the messages of one writer."
    yield ""


def _failures(results: Results) -> Iterator[str]:
    failures = []
    for part in results.parts.values():
        failures += [f"- {name} ({part.title}): {_cell(reason)}" for name, reason in part.failed.items()]
        for row in part.rows.values():
            for name, cell in row.cells.items():
                if "error" in cell and name not in part.failed:
                    failures.append(f"- {name} ({part.title}, {row.title}): {_cell(cell['error'])}")
    yield "## What failed"
    yield ""
    yield from failures or ["Nothing."]


def _cell(text: str) -> str:
    """Text of others in a table."""
    return text.replace("|", "\\|").replace("<", "&lt;").replace(str(ROOT), ".")


if __name__ == "__main__":
    print(write(HERE / "results", ROOT / "docs" / "benchmarks.md"))
