"""Every snippet of the README and of docs/ runs, in the order in which it stands."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCK = re.compile(r"^```(python|toml)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_snippet_of_the_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python runs with top-level await, in one namespace a page; TOML becomes the file that its first line names."""
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "snippets"}
    text = page.read_text("utf-8")
    for match in BLOCK.finditer(text):
        language, source = match.groups()
        line = text.count("\n", 0, match.start()) + 1
        if language == "toml":
            (tmp_path / source.splitlines()[0].removeprefix("# ")).write_text(source)
            continue
        code = compile("\n" * line + source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(eval(code, namespace))
        else:
            exec(code, namespace)


def test_every_link_between_the_pages_leads_somewhere() -> None:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_table_of_capabilities_says_what_the_drivers_declare() -> None:
    page = ROOT / "docs" / "drivers.md"
    script = runpy.run_path(str(ROOT / "docs" / "capabilities.py"))
    assert script["written"](page.read_text("utf-8")) == page.read_text("utf-8"), "make docs writes it anew"
    told = {re.findall("`([a-z]+)", driver)[0] for driver in script["DRIVERS"]}
    assert told == {module.stem for module in (ROOT / "kvstore" / "drivers").glob("[a-z]*.py")}, "each driver has a row"


def test_every_module_is_in_the_map_of_the_design() -> None:
    design = (ROOT / "docs" / "design.md").read_text("utf-8")
    for package in ("kvstore", "persistence"):
        for module in (ROOT / package).glob("[a-z]*.py"):
            assert f"{module.name}`" in design, f"docs/design.md does not say what {package}/{module.name} holds"
