"""Every row of experiments/papers.toml names a function that exists and a test that calls it."""

import ast
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
REQUIRED = {"title", "function", "test", "claim", "measured", "status"}
OPTIONAL = {"notebook", "experiment", "arguments"}
FOLDERS = {"notebook": ".", "experiment": "experiments"}  # what their paths are relative to
STATUS = ("works", "compiled only")


def listed(value) -> list[str]:
    """A string as a list of one."""
    return [value] if isinstance(value, str) else list(value)


def resolves(name: str) -> bool:
    """Whether a dotted name is a function or class of its package, not the file of that name."""
    package, _, attribute = name.rpartition(".")
    try:
        return callable(getattr(importlib.import_module(package), attribute, None))
    except ImportError:
        return False


def names_in(node: ast.AST) -> set[str]:
    """Names that a piece of code uses, its arguments (fixtures) included."""
    used = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return used | {n.arg for n in ast.walk(node) if isinstance(n, ast.arg)}


def reachable(tree: ast.Module, start: str) -> list[ast.AST]:
    """The definition of ``start`` and all of its file that it refers to; empty if not there."""
    defined: dict[str, list[ast.AST]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            defined.setdefault(node.name, []).append(node)
    for node in tree.body:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for name in {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}:
                defined.setdefault(name, []).append(node)
    todo, seen = [start], set()
    while todo:
        name = todo.pop()
        if name in defined and name not in seen:
            seen.add(name)
            todo += [used for node in defined[name] for used in names_in(node)]
    return [node for name in seen for node in defined[name]]


def calls(nodes: list[ast.AST], name: str) -> bool:
    """Whether the code calls ``name``, or hands it to a call as ``jax.vmap(name)`` does."""
    for call in (n for node in nodes for n in ast.walk(node) if isinstance(n, ast.Call)):
        for part in [call.func, *call.args, *(word.value for word in call.keywords)]:
            last = part.attr if isinstance(part, ast.Attribute) else getattr(part, "id", None)
            if last == name:
                return True
    return False


def code_of(test: str, root: Path) -> tuple[list[ast.AST], str]:
    """The code that a named test reaches, and what is wrong with the name (or nothing)."""
    path, _, name = test.partition("::")
    name = name.partition("[")[0].rpartition("::")[2]
    if not path.startswith("tests/") or not name.startswith("test_"):
        return [], f"test {test!r} is not of the form tests/path/test_x.py::test_name"
    if not (root / path).is_file():
        return [], f"test file {path} does not exist"
    nodes = reachable(ast.parse((root / path).read_text()), name)
    return nodes, "" if nodes else f"{path} has no {name}"


def problems(row: dict, root: Path) -> list[str]:
    """What is wrong with one row."""
    missing = REQUIRED - row.keys()
    if missing:
        return [f"lacks {sorted(missing)}"]
    found = [f"unknown key {key!r}" for key in sorted(row.keys() - REQUIRED - OPTIONAL)]
    found += [f"{key} is empty" for key in sorted(REQUIRED) if not str(row[key]).strip("[] \n")]
    if row["status"] not in STATUS:
        found.append(f"status {row['status']!r} is none of {STATUS}")
    for key in sorted(FOLDERS.keys() & row.keys()):
        if not (root / FOLDERS[key] / row[key]).is_file():
            found.append(f"{key} {row[key]} does not exist")
    if "arguments" in row and "experiment" not in row:
        found.append("arguments are there for no experiment")
    functions, tests = listed(row["function"]), listed(row["test"])
    found += [f"{name} cannot be imported" for name in functions if not resolves(name)]
    code = {test: code_of(test, root) for test in tests}
    found += [wrong for _, wrong in code.values() if wrong]
    called = {
        (function, test): calls(nodes, function.rpartition(".")[2])
        for function in functions
        for test, (nodes, _) in code.items()
    }
    for function in functions:
        if not any(called[function, test] for test in tests):
            found.append(f"no test of the row calls {function}")
    for test in tests:
        if not any(called[function, test] for function in functions):
            found.append(f"{test} calls no function of the row")
    return found


def rows() -> list[dict]:
    """The rows of papers.toml; an unknown table is an error."""
    table = tomllib.loads((ROOT / "experiments" / "papers.toml").read_text())
    assert set(table) <= {"method"}, f"papers.toml has {sorted(table)}; only [[method]] is read"
    return table.get("method", [])


ROWS = rows()


def test_there_are_rows_with_titles_of_their_own():
    assert ROWS, "experiments/papers.toml has no [[method]]"
    titles = [row.get("title", "untitled") for row in ROWS]
    assert sorted(set(titles)) == sorted(titles)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.get("title", "untitled"))
def test_row_holds(row):
    assert not problems(row, ROOT)


GOOD = {
    "title": "A paper",
    "function": "json.dumps",
    "test": "tests/test_good.py::test_direct",
    "claim": "writes",
    "measured": "wrote",
    "status": "works",
}
GOOD_FILE = """
import json, pytest
CASES = [json.dumps(1)]
def helper(): return json.dumps(2)
@pytest.fixture
def made(): return json.dumps(3)
@pytest.mark.parametrize("case", CASES)
def test_table(case): pass
def test_direct(): json.dumps(4)
def test_helper(): helper()
def test_fixture(made): pass
def test_handed(): list(map(json.dumps, [5]))
def test_mentions(): json.dumps
def test_loads(): json.loads("1")
"""


@pytest.fixture
def tree(tmp_path):
    """A small repository with one test file."""
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_good.py").write_text(GOOD_FILE)
    return tmp_path


@pytest.mark.parametrize("name", ["direct", "helper", "fixture", "handed", "table", "direct[1-2]"])
def test_checker_accepts_a_good_row(tree, name):
    assert not problems(GOOD | {"test": f"tests/test_good.py::test_{name}"}, tree)


def test_checker_accepts_a_notebook_and_an_experiment(tree):
    for folder, file in (("notebooks", "n.ipynb"), ("experiments", "e.py")):
        (tree / folder).mkdir()
        (tree / folder / file).touch()
    extra = {"notebook": "notebooks/n.ipynb", "experiment": "e.py", "arguments": "--steps 9"}
    assert not problems(GOOD | extra, tree)


def test_checker_accepts_lists(tree):
    tests = [f"tests/test_good.py::test_{name}" for name in ("loads", "helper")]
    assert not problems(GOOD | {"function": ["json.dumps", "json.loads"], "test": tests}, tree)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"status": "nearly"}, "status"),
        ({"measured": ""}, "measured is empty"),
        ({"test": []}, "test is empty"),
        ({"extra": "x"}, "unknown key"),
        ({"notebook": "notebooks/none.ipynb"}, "notebooks/none.ipynb does not exist"),
        ({"experiment": "tests/test_good.py"}, "experiment tests/test_good.py does not exist"),
        ({"arguments": "--steps 1"}, "for no experiment"),
        ({"function": "json.nothing"}, "cannot be imported"),
        ({"function": "no_such_package.x"}, "cannot be imported"),
        ({"function": ["json.dumps", "json.load"]}, "no test of the row calls json.load"),
        ({"test": "tests/test_good.py::test_none"}, "has no test_none"),
        ({"test": "tests/test_none.py::test_x"}, "does not exist"),
        ({"test": "test_good.py"}, "not of the form"),
        ({"test": "tests/test_good.py::test_mentions"}, "no test of the row calls"),
        ({"test": "tests/test_good.py::test_loads"}, "calls no function of the row"),
    ],
)
def test_checker_sees_a_bad_row(tree, change, said):
    assert said in "; ".join(problems(GOOD | change, tree))


@pytest.mark.parametrize("key", sorted(REQUIRED))
def test_checker_sees_a_missing_key(tree, key):
    row = {name: value for name, value in GOOD.items() if name != key}
    assert problems(row, tree) == [f"lacks ['{key}']"]
