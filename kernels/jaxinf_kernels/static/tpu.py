"""The schedules that libtpu makes for TPUs that are not here.

One instruction word, a bundle, is issued a cycle: so bundles times how often each is passed bound a
kernel's time from below. libtpu writes its schedules where its options say, which it reads once.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

TOPOLOGIES = {
    "v4": "v4:2x2x1", "v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2",
    "tpu7x": "tpu7x:2x2x1",
}  # fmt: skip
"""The smallest topology of each chip."""
_OPTIONS = "--xla_jf_dump_to={} --xla_jf_dump_llo_text=true"
_BUNDLE = re.compile(r"\s*(?:0x[0-9a-f]+|0)\s+(?:[A-Z]{2}\s*)?:\s*(>[> ]*)?\s*\{")


class Node(NamedTuple):
    """A part of a kernel: all of it, the body of a loop, or what is run under a condition."""

    kind: str
    """``"kernel"``, ``"loop"`` or ``"branch"``."""
    bundles: int
    """Without those of its parts."""
    mxu: float
    """Slots of the matrix units that are used, in bundles: at most as many as there are bundles."""
    spills: int
    """Stores of registers that did not suffice."""
    parts: tuple["Node", ...]

    def walk(self) -> Iterator["Node"]:
        """Go through this part and all within it, in order."""
        yield self
        for part in self.parts:
            yield from part.walk()

    @property
    def multiplies(self) -> bool:
        """Whether the part itself, not one within it, uses a matrix unit."""
        return self.mxu > 0

    def total(self, times: Callable[["Node"], float]) -> "Total":
        """Return bundles that are passed.

        Args:
          times: how often a part is run each time that what it lies in is run.
        """
        bundles, mxu = float(self.bundles), self.mxu
        for part in self.parts:
            inner = part.total(times)
            bundles += times(part) * inner.bundles
            mxu += times(part) * inner.mxu
        return Total(bundles, mxu)


class Total(NamedTuple):
    """What a call costs by its schedule."""

    bundles: float
    mxu: float
    """Bundles that the matrix units are busy for."""

    @property
    def use(self) -> float:
        """The share of the matrix units' slots that is used."""
        return self.mxu / self.bundles


class Schedule(NamedTuple):
    """The schedule of one kernel of a program."""

    name: str
    root: Node

    @property
    def spills(self) -> int:
        """All spilled stores."""
        return sum(part.spills for part in self.root.walk())


class Report(NamedTuple):
    """What libtpu made of a program."""

    kernels: tuple[Schedule, ...]
    temporary: int
    """Bytes of memory beside arguments and results."""
    text: str
    """The compiled program."""


def folder() -> Path:
    """Return where libtpu writes; call it before anything else of JAX that asks libtpu.

    Raises:
      RuntimeError: where libtpu was set up before, without these options.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    found = re.search(r"--xla_jf_dump_to=(\S+)", given)
    if not found:
        if "libtpu" in _loaded():
            raise RuntimeError("libtpu has started: import jaxinf_kernels.static.tpu before that.")
        where = tempfile.mkdtemp(prefix="schedules_")
        atexit.register(shutil.rmtree, where, ignore_errors=True)
        os.environ["LIBTPU_INIT_ARGS"] = f"{given} {_OPTIONS.format(where)}"
        return Path(where)
    return Path(found[1])


def _loaded() -> str:
    try:
        return Path("/proc/self/maps").read_text()
    except OSError:
        return ""


def device(chip: str) -> Any:
    """Return a device of a chip that is not here.

    Raises:
      RuntimeError: without libtpu.
    """
    # without these libtpu looks for a TPU that the machine is part of
    for name, value in (
        ("TPU_SKIP_MDS_QUERY", "1"), ("TPU_ACCELERATOR_TYPE", "v5litepod-4"),
        ("TPU_WORKER_HOSTNAMES", "localhost"), ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
    ):  # fmt: skip
        os.environ.setdefault(name, value)
    from jax.experimental import topologies

    try:
        found = topologies.get_topology_desc(TOPOLOGIES[chip], platform="tpu")
    except KeyError:
        raise ValueError(f"no TPU is named {chip!r}; there are {', '.join(TOPOLOGIES)}.") from None
    except RuntimeError as error:
        raise RuntimeError("compiling for TPUs needs libtpu: pip install 'jaxinf[aot]'.") from error
    return found.devices[0]


def report(function: Callable[..., Any], *args: Any, chip: str) -> Report:
    """Compile a function for a TPU that is not here, and read its kernels' schedules.

    Args:
      function: of arrays.
      args: arrays or ``jax.ShapeDtypeStruct``.
      chip: ``"v5e"`` say.
    """
    where = folder()
    import jax
    import numpy as np
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

    mesh = Mesh(np.array([device(chip)]), ("x",))
    one = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), args)
    before = set(where.iterdir()) if where.exists() else set()
    with use_abstract_mesh(mesh.abstract_mesh):
        compiled = jax.jit(function, out_shardings=one).lower(*placed).compile()
    fresh = sorted(set(where.iterdir()) - before)
    kernels = tuple(_read(path, fresh) for path in fresh if _is_kernel(path))
    for path in fresh:
        path.unlink()
    memory: Any = compiled.memory_analysis()
    return Report(kernels, memory.temp_size_in_bytes, compiled.as_text() or "")


def _is_kernel(path: Path) -> bool:
    found = re.fullmatch(r"\d+-(.*)-\d+-final_bundles\.txt", path.name)
    return bool(found) and not found[1].startswith(("TLP", "<"))


def _read(path: Path, fresh: list[Path]) -> Schedule:
    """Read the schedule of a kernel, and how full its bundles are."""
    stem = re.sub(r"-\d+-final_bundles\.txt$", "", path.name)
    ends = "-final_hlo-static-per-bundle-utilization.txt"
    (use,) = (p for p in fresh if p.name.startswith(f"{stem}-") and p.name.endswith(ends))
    head, rows = use.read_text().split("== UTILIZATION:")
    names, capacity = head.strip().splitlines()[1:3]
    column = [name.strip() for name in names.split(",")]
    units = int(capacity.split()[column.index("MXU")])
    table = [[int(n) for n in row.split()] for row in rows.strip().splitlines()]
    slots = [(row[column.index("MXU")] / units, row[column.index("VSTORE:SPILL")]) for row in table]
    name = re.sub(r"^\d+-|\.\d+$", "", stem)
    return Schedule(name, parse(path.read_text(errors="replace").splitlines(), slots))


def parse(lines: list[str], slots: list[tuple[float, int]]) -> Node:
    """Return the parts of a schedule.

    Args:
      lines: of libtpu's text: a bundle a line; ``>`` in front for each loop that it lies in; a
        branch over a part names the region behind it.
      slots: of each bundle, the share of the matrix units' slots, and spilled stores.
    """
    starts = {}
    for number, line in enumerate(lines):
        for region in re.findall(r"(?:Start|Start/End empty) region (\d+)", line):
            starts.setdefault(region, number)
    root = _Open("kernel", None)
    stack, depth, delay, pending = [root], 0, 0, None
    here = -1
    for number, line in enumerate(lines):
        match = _BUNDLE.match(line)
        if match is None:
            continue
        here += 1
        while stack[-1].end is not None and number >= stack[-1].end:
            stack.pop()
        if match[1] or not re.search(r"\{\s*\}", line):  # empty ones do not tell their loops
            now = (match[1] or "").count(">")
            while now < depth:
                while stack.pop().kind != "loop":
                    pass
                depth -= 1
            while now > depth:
                stack.append(stack[-1].inner("loop", None))
                depth += 1
        if pending is not None:
            delay -= 1
            if delay < 0:
                stack.append(stack[-1].inner("branch", pending))
                pending = None
        stack[-1].add(slots[here] if here < len(slots) else (0.0, 0))
        jump = re.search(r"sbr\.rel \(.*?\) target = \$region(\d+)", line)
        if jump and starts.get(jump[1], 0) > number:
            delay, pending = 4, starts[jump[1]]
    return root.closed()


class _Open:
    """A part that is being read."""

    def __init__(self, kind: str, end: int | None):
        """Take the line where it ends, which a loop does not know."""
        self.kind, self.end = kind, end
        self.bundles, self.mxu, self.spills = 0, 0.0, 0
        self.parts: list[_Open] = []

    def inner(self, kind: str, end: int | None) -> "_Open":
        """Begin a part within."""
        self.parts.append(_Open(kind, end))
        return self.parts[-1]

    def add(self, slots: tuple[float, int]) -> None:
        """Count a bundle."""
        self.bundles += 1
        self.mxu += slots[0]
        self.spills += slots[1]

    def closed(self) -> Node:
        """Return what was read."""
        parts = tuple(part.closed() for part in self.parts)
        return Node(self.kind, self.bundles, self.mxu, self.spills, parts)
