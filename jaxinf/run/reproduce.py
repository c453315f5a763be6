"""``jaxinf reproduce TITLE``: what a paper claims beside what was measured, and run it."""

import difflib
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from jaxinf.run.cli import UsageError, find
from jaxinf.run.load import run_file


def reproduce(title: str, papers: Path | None) -> int:
    """Print claim beside figure for every row whose title holds ``title``, and run the rows.

    Args:
      title: a paper's title or a part of it, in any case.
      papers: a TOML file whose arrays of tables are rows; ``experiments/papers.toml`` of the
        working directory or of the repository by default.

    Returns:
      The exit status: the largest of the rows'.
    """
    path = papers or find("experiments/papers.toml")
    if path is None or not path.is_file():
        raise UsageError(
            f"there is no {path or 'experiments/papers.toml'}. Pass --papers PATH, or run this "
            "from the repository."
        )
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise UsageError(f"{path} is no valid TOML: {error}.") from None
    rows = [row for table in content.values() if isinstance(table, list) for row in table]
    found = [row for row in rows if title.lower() in row.get("title", "").lower()]
    if not found:
        raise UsageError(_unknown(title, path, [row.get("title", "") for row in rows]))
    return max(_run_row(row, path) for row in found)


def _unknown(title: str, path: Path, titles: list[str]) -> str:
    """A message with the titles nearest to one that is not there."""
    lower = {known.lower(): known for known in titles}
    near = [lower[one] for one in difflib.get_close_matches(title.lower(), lower, cutoff=0.3)]
    listed = "; ".join(near) if near else "none"
    return f"no title in {path} holds {title!r}. Near matches: {listed}."


def _run_row(row: dict[str, Any], path: Path) -> int:
    """Print one row and run its experiment, or else its test."""
    for name in ("title", "function", "claim", "measured", "status"):
        value = row.get(name, "-")
        listed = ", ".join(value) if isinstance(value, list) else value
        print(f"{name + ':':10}{listed}", flush=True)
    if "experiment" in row:
        file = path.resolve().parent / row["experiment"]
        return run_file(str(file), shlex.split(row.get("arguments", "")))
    if "test" in row:
        folder = path.resolve().parent
        root = folder.parent if folder.name == "experiments" else folder
        tests = [row["test"]] if isinstance(row["test"], str) else row["test"]
        return subprocess.run([sys.executable, "-m", "pytest", *tests], cwd=root).returncode
    raise UsageError(f"the row {row['title']!r} in {path} names neither an experiment nor a test.")
