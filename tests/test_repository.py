"""No machine's paths in the files, sizes that can be read, and a docstring on what is public."""

import ast
import importlib
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = sorted({path.parent.name for path in (ROOT / "jaxinf").glob("*/*.py")})
MODULES = [path.relative_to(ROOT) for path in sorted((ROOT / "jaxinf").rglob("*.py"))]
EXPERIMENTS = [path.relative_to(ROOT) for path in sorted((ROOT / "experiments").glob("*.py"))]

# Put together here, so that this file does not hold what it looks for.
FOLDERS = ("home", "root", "tmp", "work", "opt", "mnt", "Users")
REGISTRIES = (
    ("py", "pi"),
    ("python", "hosted"),
    ("ana", "conda"),
    ("npm", "js"),
    ("crates", ".io"),
)
MACHINE_PATH = re.compile(
    r"(?<![\w.:/$}~-])/(?:" + "|".join(FOLDERS) + r")(?:/[\w.~-]|\b(?![/\w]))"
)
REGISTRY = re.compile(
    r"\bhttps?" + r"://[\w.-]*(?:" + "|".join(re.escape("".join(p)) for p in REGISTRIES) + r")"
)
FILE_ADDRESS = re.compile(r"\bfile" + r"://")


def leaks(text: str) -> list[str]:
    """Machine paths and registry addresses in a text, each with its line."""
    return [
        f"line {number}: {found[0]}"
        for number, line in enumerate(text.splitlines(), 1)
        for pattern in (MACHINE_PATH, REGISTRY, FILE_ADDRESS)
        for found in pattern.finditer(line)
    ]


def long_functions(source: str, limit: int) -> list[str]:
    """Functions of more lines than the limit, from `def` to the end."""
    lengths = [
        (node.name, (node.end_lineno or node.lineno) - node.lineno + 1)
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    return [f"{name} has {n} lines, at most {limit}" for name, n in lengths if n > limit]


def undocumented(module) -> list[str]:
    """Public functions and classes of a room without a docstring of their own."""
    found = []
    for name in module.__all__:
        thing = getattr(module, name)
        if not callable(thing) or not str(getattr(thing, "__module__", "")).startswith("jaxinf"):
            continue
        text = (thing.__doc__ or "").strip()
        if not text or text.startswith(f"{name}("):  # what dataclass and NamedTuple make up
            found.append(name)
    return found


def test_files_name_no_machine_and_no_registry():
    if not (ROOT / ".git").exists():
        pytest.skip("git says which files belong to the repository, and this is no checkout")
    git = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(git, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    found = []
    for name in filter(None, listed.split("\0")):
        path = ROOT / name
        if not path.is_file():
            continue
        try:
            text = path.read_bytes().decode()
        except UnicodeDecodeError:
            continue  # not a text
        found += [f"{name}, {leak}" for leak in leaks(text)]
    assert not found


def test_files_of_tests_have_names_of_their_own():
    """Two of one name are one module to pytest, which then collects neither twice."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_module_is_short(path):
    source = (ROOT / path).read_text()
    assert source.count("\n") <= 350
    assert not long_functions(source, 60)


@pytest.mark.parametrize("path", EXPERIMENTS, ids=str)
def test_experiment_is_short(path):
    assert (ROOT / path).read_text().count("\n") <= 300


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_have_docstrings(room):
    assert not undocumented(importlib.import_module(f"jaxinf.{room}"))


@pytest.mark.parametrize("folder", FOLDERS)
def test_leak_is_seen(folder):
    assert leaks(f'path = "/{folder}/someone/file"')
    assert leaks(f"cd /{folder}/x")
    assert not leaks(
        f"{folder}/x square/{folder} ./{folder}/x runs/{folder}/x https://x.org/{folder}/y"
    )


def test_address_is_seen():
    for parts in REGISTRIES:
        assert leaks("see https" + f"://www.{''.join(parts)}.org/simple")
    assert leaks("file" + ":///x")
    assert not leaks("see https" + "://python.org and the " + "py" + "pi package")


def test_long_function_is_seen():
    source = "def f():\n" + "    x = 1\n" * 60
    assert long_functions(source, 60) == ["f has 61 lines, at most 60"]
    assert not long_functions(source, 61)


def test_missing_docstring_is_seen():
    module = importlib.import_module("types").ModuleType("jaxinf.attic")
    exec(
        "from typing import NamedTuple\ndef f(): ...\nclass N(NamedTuple):\n  a: int", vars(module)
    )
    module.f.__module__ = module.N.__module__ = "jaxinf.attic"
    module.__all__ = ["f", "N"]
    assert undocumented(module) == ["f", "N"]
    module.f.__doc__ = module.N.__doc__ = "Says what it is."
    assert not undocumented(module)
