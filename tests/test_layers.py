"""Each room imports only from rooms above it; the kernels import nothing of jaxinf."""

import ast
import importlib
from pathlib import Path

import pytest

import jaxinf

ROOT = Path(__file__).parents[1]
ORDER = (
    "core",
    "diagnostics",
    "nets",
    "target",
    "process",
    "markov",
    "mcmc",
    "smc",
    "grad",
    "sampler",
    "score",
    "vi",
    "guide",
    "discrete",
    "flow",
    "mc",
    "ppl",
    "amortized",
    "bayes",
    "attention",
    "decode",
    "quant",
    "data",
    "run",
    "testing",
)
ON_DISK = sorted({path.parent.name for path in (ROOT / "jaxinf").glob("*/*.py")})


def imported(source: str, package: str) -> list[tuple[int, str]]:
    """Line and absolute dotted name of every import in a module that lies in ``package``.

    ``jaxinf.room`` after ``import jaxinf`` imports the room too, so it is found as well.
    """
    found, roots = [], set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
            for alias in node.names:
                if alias.name == "jaxinf" or (alias.name[:7] == "jaxinf." and not alias.asname):
                    roots.add(alias.asname or "jaxinf")
        elif isinstance(node, ast.ImportFrom):
            parts = package.split(".")
            above = parts[: len(parts) - node.level + 1] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            found += [(node.lineno, f"{base}.{alias.name}") for alias in node.names]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in roots:
            found.append((node.lineno, f"jaxinf.{node.attr}"))
    return found


def violations(source: str, package: str) -> list[str]:
    """What the module imports against the order of the rooms."""
    top, *rest = package.split(".")
    if top == "jaxinf_kernels":
        return [
            f"line {line}: the kernels import {name}"
            for line, name in imported(source, package)
            if name.split(".")[0] == "jaxinf"
        ]
    if not rest or rest[0] not in ORDER:
        return [f"{package} is no room of the order"]
    found = []
    for line, name in imported(source, package):
        head, *room = name.split(".")
        if head != "jaxinf" or not room or room[0] in ("__version__", "__file__"):
            continue
        if room[0] not in ORDER:
            found.append(f"line {line}: {name} is no room of the order")
        elif ORDER.index(room[0]) > ORDER.index(rest[0]):
            found.append(f"line {line}: {rest[0]} imports {name}, which lies below it")
    return found


MODULES = [
    path.relative_to(ROOT)
    for path in sorted((ROOT / "jaxinf").rglob("*.py"))
    if path != ROOT / "jaxinf" / "__init__.py"
]
KERNELS = [path.relative_to(ROOT / "kernels") for path in sorted((ROOT / "kernels").rglob("*.py"))]


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_room_imports_only_from_above(path):
    found = violations((ROOT / path).read_text(), ".".join(path.parent.parts))
    assert not found, f"{path}: " + "; ".join(found)


@pytest.mark.parametrize("path", KERNELS, ids=str)
def test_kernels_import_nothing_of_jaxinf(path):
    # the benchmarks are programs beside the package, and may use what it may
    package = "jaxinf_kernels" if path.parts[0] == "bench" else ".".join(path.parent.parts)
    found = violations((ROOT / "kernels" / path).read_text(), package)
    assert not found, f"{path}: " + "; ".join(found)


@pytest.mark.parametrize("room", ON_DISK)
def test_room_has_a_public_face(room):
    assert room in ORDER
    module = importlib.import_module(f"jaxinf.{room}")
    assert module.__doc__, f"jaxinf/{room}/__init__.py says nothing of what the room is for"
    assert module.__doc__.strip()
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing, f"jaxinf.{room}.__all__ names {missing}, which are not there"
    assert len(set(module.__all__)) == len(module.__all__)


def test_lazy_rooms_are_those_on_disk():
    assert sorted(jaxinf._ROOMS) == ON_DISK
    assert list(jaxinf._ROOMS) == sorted(jaxinf._ROOMS, key=ORDER.index)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("import jaxinf.run", "jaxinf.core"),
        ("import jaxinf\njaxinf.run.run()", "jaxinf.core"),
        ("import jaxinf as ji\nji.sampler", "jaxinf.core"),
        ("from jaxinf import *", "jaxinf.core"),
        ("from jaxinf import score", "jaxinf.process"),
        ("from jaxinf.sampler import sample", "jaxinf.process"),
        ("from jaxinf.sampler.plan import sample", "jaxinf.process.pinned"),
        ("def f():\n    from jaxinf.run import x", "jaxinf.data"),
        ("from .. import run", "jaxinf.core"),
        ("from ..run import main", "jaxinf.core"),
        ("from ...run.cli import main", "jaxinf.core.deep"),
        ("from jaxinf import attic", "jaxinf.run"),
        ("", "jaxinf.attic"),
        ("from jaxinf.core import types", "jaxinf_kernels.attention"),
        ("import jaxinf", "jaxinf_kernels"),
    ],
)
def test_checker_sees_a_violation(source, package):
    assert violations(source, package)


@pytest.mark.parametrize(
    ("source", "package"),
    [
        ("from jaxinf import __version__, core", "jaxinf.run"),
        ("import jaxinf.core.types as t", "jaxinf.core"),
        ("import jaxinf\njaxinf.__version__, jaxinf.core.record", "jaxinf.run"),
        ("from . import types\nfrom .types import Key", "jaxinf.core"),
        ("from ..core import record", "jaxinf.process"),
        ("import jaxinf_kernels, jax\nfrom jaxinfant import x", "jaxinf.core"),
        ("from jaxinf_kernels.attention import api", "jaxinf_kernels.attention"),
    ],
)
def test_checker_accepts_what_is_right(source, package):
    assert not violations(source, package)
