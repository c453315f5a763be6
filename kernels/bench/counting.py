"""Counts of a kernel's schedule over a whole call, and the best of several sizes of blocks."""

import json
import re
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from jaxinf_kernels.static import tpu as static

RESULTS = Path(__file__).parent / "results"
"""What was counted; the tables of kernels/README.md are made from it."""


class Visits(NamedTuple):
    """How often the parts of a kernel are run that goes over blocks."""

    calls: int
    """How often the kernel goes over all blocks: heads, say."""
    steps: int
    """Steps of the grid in one."""
    bodies: tuple[int, ...]
    """Of those, how many run each part that multiplies."""
    before: tuple[int, ...] = ()
    """The parts in front of these under a condition, the nearest last."""
    after: tuple[int, ...] = ()
    """The parts behind, the nearest first."""

    def times(self, root: static.Node) -> Callable[[static.Node], float]:
        """Return how often each part of a schedule is run whenever what it lies in is."""
        found = {id(part): 1.0 for part in root.walk()}
        for node in root.walk():
            for part in node.parts:
                if part.kind == "loop":
                    found[id(part)] = self.calls * self.steps
            at = [x for x, part in enumerate(node.parts) if part.multiplies]
            if not at or node.kind == "kernel":
                continue
            multiplying = [node.parts[x] for x in at if node.parts[x].kind == "branch"]
            groups = (
                (multiplying, self.bodies),
                (node.parts[: at[0]][::-1], self.before[::-1]),
                (node.parts[at[-1] + 1 :], self.after),
            )
            for parts, runs in groups:
                for part, count in zip(parts, runs, strict=False):
                    found[id(part)] = count / self.steps
        return lambda part: found[id(part)]


class Case(NamedTuple):
    """One kernel at one size of blocks."""

    name: str
    sizes: tuple[int, ...]
    call: Callable[..., Any]
    args: tuple[Any, ...]
    kernels: dict[str, Visits]
    """By what the names of its kernels begin with."""


def count(case: Case, chip: str) -> dict[str, Any]:
    """Return what a case costs on a chip; ``error`` where it does not compile."""
    row: dict[str, Any] = {"name": case.name, "chip": chip, "sizes": list(case.sizes)}
    started = time.time()
    try:
        report = static.report(case.call, *case.args, chip=chip)
    except Exception as error:
        return row | {"error": str(error).splitlines()[0][:160]}
    bundles = mxu = spills = 0.0
    for begin, visits in case.kernels.items():
        (kernel,) = (k for k in report.kernels if k.name.startswith(begin))
        found = kernel.root.total(visits.times(kernel.root))
        bundles, mxu, spills = bundles + found.bundles, mxu + found.mxu, spills + kernel.spills
    row |= {"bundles": round(bundles), "use": round(mxu / bundles, 4), "spills": int(spills)}
    row["beside"] = beside(report.text)
    return row | {"temporary": report.temporary, "seconds": round(time.time() - started, 1)}


def beside(text: str) -> int:
    """Return the compiler's estimate of a program's cycles outside of Pallas kernels.

    Without copies and constants: which layout arguments have is the caller's affair.
    """
    estimated = re.compile(r"= \S+ ([a-z-]+)\(.*\"estimated_cycles\":\"(\d+)\"")
    found = (estimated.search(line) for line in text.splitlines())
    left_out = "copy", "broadcast", "iota"
    return sum(int(m[2]) for m in found if m and m[1] not in left_out)


def parts(case: Case, chip: str) -> dict[str, dict[str, Any]] | None:
    """Return by kernel what its parts cost, for tables; None where it does not compile."""
    try:
        report = static.report(case.call, *case.args, chip=chip)
    except Exception as error:
        print(f"{chip} {case.name} {case.sizes}: {str(error).splitlines()[0][:100]}", flush=True)
        return None
    found = {}
    for begin in case.kernels:
        (kernel,) = (k for k in report.kernels if k.name.startswith(begin))
        (within,) = (n for n in kernel.root.walk() if any(p.multiplies for p in n.parts))
        around = sum(n.bundles for n in kernel.root.walk() if any(p is within for p in n.parts))
        at = [x for x, part in enumerate(within.parts) if part.multiplies]
        found[begin] = {
            "step": within.bundles + (around if within.kind == "branch" else 0),
            "before": [part.bundles for part in within.parts[: at[0]]],
            "bodies": [within.parts[x].bundles for x in at],
            "use": [round(within.parts[x].mxu / within.parts[x].bundles, 3) for x in at],
            "after": [part.bundles for part in within.parts[at[-1] + 1 :]],
        }
    return found


def sweep(cases: Iterable[Case], chip: str) -> list[dict[str, Any]]:
    """Count cases, and say each as it comes."""
    rows = []
    for case in cases:
        row = count(case, chip)
        said = row.get("error") or f"{row['bundles']:>10} bundles, use {row['use']:.3f}"
        print(f"{chip:6} {case.name:24} {case.sizes!s:20} {said}", flush=True)
        rows.append(row)
    return rows


def whole(row: dict[str, Any]) -> int:
    """Return the bundles of kernels and the cycles beside them."""
    return row["bundles"] + row["beside"]


def best(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return by name the row with the fewest bundles over the whole call."""
    fine = sorted((row for row in rows if "bundles" in row), key=lambda row: -whole(row))
    return {row["name"]: row for row in fine}


def keep(name: str, rows: list[dict[str, Any]]) -> None:
    """Add rows to a file of results, in place of those of the same case."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    held = json.loads(path.read_text()) if path.exists() else []
    known = {(row["name"], row["chip"], *row["sizes"]): row for row in [*held, *rows]}
    lines = ",\n ".join(json.dumps(row) for _, row in sorted(known.items(), key=str))
    path.write_text(f"[\n {lines}\n]\n")
