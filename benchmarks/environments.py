"""Sets up `.bench-venv`: an environment a family of peers, so that one that does not install stops no other.

`python -m benchmarks.environments` needs nothing but Python. What failed is kept in `failed.txt` of the environment, and is
tried again the next time.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent
VENV = ROOT / ".bench-venv"
NODE = HERE / "node"
NAMES = ("base", *sorted(path.stem for path in (HERE / "requirements").glob("*.txt") if path.stem != "base"))


def python(name: str) -> Path:
    return VENV / name / "bin" / "python"


def failure(name: str) -> str | None:
    """Why an environment can't be used, or None."""
    if name == "node" and shutil.which("node") is None:
        return "there is no node on this machine"
    failed = VENV / name / "failed.txt"
    if failed.exists():
        return failed.read_text()
    return None if (VENV / name / "installed.txt").exists() else "it was not set up: run `make bench`"


def main() -> int:
    for name in NAMES:
        source = (HERE / "requirements" / f"{name}.txt").read_bytes()
        install(name, source, partial(make, name))
    if shutil.which("npm"):
        install("node", (NODE / "package.json").read_bytes(), make_node)
    else:
        print("node: skipped, there is no npm on this machine")
    if reason := failure("base"):
        print(f"Nothing can be measured without the first environment: {reason}", file=sys.stderr)
        return 1
    return 0


def install(name: str, source: bytes, make: Callable[[], None]) -> None:
    """Runs `make` unless the environment is there as `source` describes it."""
    folder = VENV / name
    installed, failed = folder / "installed.txt", folder / "failed.txt"
    digest = hashlib.sha256(source).hexdigest()
    if installed.exists() and installed.read_text() == digest:
        return
    print(f"{name}: installing", flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    installed.unlink(missing_ok=True)
    failed.unlink(missing_ok=True)
    try:
        make()
    except (subprocess.CalledProcessError, OSError) as error:
        output = getattr(error, "stderr", None) or str(error)
        reason = " ".join([line for line in output.splitlines() if line.strip()][-1:])[:400]
        failed.write_text(f"it did not install: {reason}")
        print(f"{name}: it did not install: {reason}", flush=True)
    else:
        installed.write_text(digest)


def make(name: str) -> None:
    folder = VENV / name
    run(sys.executable, "-m", "venv", *([] if name == "base" else ["--without-pip"]), "--clear", str(folder))
    pip = [str(python("base")), "-m", "pip", "--python", str(python(name)), "install", "--quiet", "--no-input"]
    pip += ["--disable-pip-version-check"]
    run(*pip, "--requirement", str(HERE / "requirements" / f"{name}.txt"))
    if name == "base":
        run(*pip, "--no-deps", "--editable", str(ROOT))


def make_node() -> None:
    run("npm", "install", "--no-package-lock", "--no-audit", "--no-fund", "--loglevel=error", cwd=NODE)


def run(*command: str, cwd: Path = ROOT) -> None:
    """Runs it; what it says is shown only if it fails."""
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    subprocess.run(command, cwd=cwd, check=True, capture_output=True, text=True, env=environment)


if __name__ == "__main__":
    sys.exit(main())
