import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import jaxinf
from jaxinf.run.cli import main

FILE = '''"""Nothing much.

Expected: nothing.
"""

from dataclasses import dataclass

import numpy as np
from beside import ROWS
from jaxinf.run import Experiment


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 2
    """How many steps."""
    rate: float = 0.5
    fail: bool = False


def build(config):
    def batch(seed, step, index):
        if config.fail and step == 1:
            raise KeyboardInterrupt
        return np.ones((ROWS, 1), np.float32)[index]

    return Experiment(
        init=lambda key: np.float32(config.rate),
        step=lambda key, state, batch: (state, {"loss": state / config.rate}),
        batch=batch,
        evaluate={"state": lambda key, state: state if config.rate < 7 else 1 / 0},
        draw=lambda arrays: {},
        steps=config.steps,
        batch_size=ROWS,
    )
'''

STUDY = (
    FILE[: FILE.index("def build")]
    + """
from jaxinf.run import Study

def build(config):
    return Study(run=lambda key: {"a": np.float32(config.rate)}, draw=lambda arrays: {})
"""
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    (tmp_path / "beside.py").write_text("ROWS = 8\n")
    (tmp_path / "small.py").write_text(FILE)
    yield tmp_path
    sys.modules.pop("beside", None)


def report(capsys):
    return Path(capsys.readouterr().out.splitlines()[-1])


def complaint(capsys):
    """What was said on stderr, in one line, and that it was no traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return " ".join(said.split())


def test_run_takes_fields_and_options(folder, capsys):
    arguments = ["run", "small.py", "--rate", "0.25", "--seed", "4", "--no-progress", "--out", "o"]
    assert main(arguments) == 0
    path = report(capsys)
    assert path.is_relative_to(folder / "o" / "small")
    text = path.read_text()
    assert text.startswith("# Nothing much.\n\nExpected: nothing.\n")
    assert "jaxinf run small.py --rate 0.25 --seed 4 --no-progress --out o" in text
    assert "| rate | 0.25 |" in text
    assert "| seed | 4 |" in text
    assert "| state | 0.25 |" in text


def test_run_seeds_and_progress(folder, capsys):
    assert main(["run", "small.py", "--seeds", "2"]) == 0
    captured = capsys.readouterr()
    assert "| state | 0.5 | 0.5 | 0.5 |" in Path(captured.out.splitlines()[-1]).read_text()
    assert "train 2/2" in captured.err
    assert "evaluate 1/1" in captured.err


def test_run_a_study_by_its_name_under_experiments(folder, capsys):
    (folder / "experiments").mkdir()
    (folder / "experiments" / "table.py").write_text(STUDY)
    (folder / "beside.py").rename(folder / "experiments" / "beside.py")
    assert main(["run", "table", "--rate", "2"]) == 0
    assert "| a | 2 |" in report(capsys).read_text()


def test_exit_statuses_of_runs_that_end_early(folder, capsys):
    assert main(["run", "small.py", "--fail", "--no-progress"]) == 130
    captured = capsys.readouterr()
    assert "**interrupted**" in Path(captured.out.splitlines()[-1]).read_text()
    assert main(["run", "small.py", "--rate", "7", "--no-progress"]) == 1
    captured = capsys.readouterr()
    assert "evaluation state: ZeroDivisionError" in captured.err
    assert "finished with failures" in Path(captured.out.splitlines()[-1]).read_text()


def test_an_unknown_field_is_an_error(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "small.py", "--stepz", "3"])
    assert caught.value.code == 2
    said = capsys.readouterr().err
    assert "--stepz" in said
    assert "--steps" in said
    assert not (folder / "runs").exists()


def test_help_shows_fields_and_options(folder, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["run", "small.py", "--help"])
    assert caught.value.code == 0
    said = capsys.readouterr().out
    for part in ("--steps INT", "How many steps", "--seeds INT", "--profile", "--out", "Nothing"):
        assert part in said


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("class Config", "class Other", "defines no Config. Write `@dataclass(frozen=True"),
        ("@dataclass(frozen=True, kw_only=True)\n", "", "is no dataclass. Write @dataclass"),
        ("frozen=True, ", "", "is not frozen"),
        ("def build", "def built", "defines no build. Write `def build(config: Config)"),
        ("return Experiment(", "return dict(", "a jaxinf.run.Study, it returned dict"),
        ("rate: float", "seed: float", "field seed of Config in"),
    ],
)
def test_files_that_are_no_experiments(folder, capsys, old, new, message):
    (folder / "small.py").write_text(FILE.replace(old, new).replace(": Config)", ")"))
    assert main(["run", "small.py"]) == 2
    said = complaint(capsys)
    assert message in said
    assert "small.py" in said


def test_a_clash_names_both(folder, capsys):
    (folder / "small.py").write_text(FILE.replace("rate: float", "seeds: float"))
    assert main(["run", "small.py"]) == 2
    said = complaint(capsys)
    assert "field seeds" in said
    assert "option --seeds" in said


def test_a_missing_file(folder, capsys):
    assert main(["run", "nowhere.py"]) == 2
    assert "no file nowhere.py" in complaint(capsys)
    (folder / "notes.txt").write_text("")
    assert main(["run", "notes.txt"]) == 2
    assert "must end in .py" in complaint(capsys)


def test_new_refuses_to_overwrite(folder, capsys):
    assert main(["new", "small"]) == 2
    assert "small.py exists" in complaint(capsys)
    assert (folder / "small.py").read_text() == FILE
    assert main(["new", "no/where"]) == 2
    assert "Make its folder first" in complaint(capsys)


def outside(tmp_path, *arguments):
    """Run a Python program outside the repository, in one process without these tests' hooks."""
    root = str(Path(jaxinf.__file__).parents[1])
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_new_then_run_outside_the_repository(tmp_path, capsys):
    assert main(["new", str(tmp_path / "idea")]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"jaxinf run {tmp_path / 'idea.py'}"
    assert len((tmp_path / "idea.py").read_text().splitlines()) <= 70
    call = "import sys; from jaxinf.run.cli import main; sys.exit(main())"
    done = outside(tmp_path, "-W", "error", "-c", call, "run", "idea.py")
    assert done.returncode == 0, done.stderr
    path = Path(done.stdout.splitlines()[-1])
    assert path.is_relative_to(tmp_path / "runs" / "idea")
    (largest,) = re.findall(r"\| error.largest \| (.*?) \|", path.read_text())
    assert float(largest) < 0.1
    assert (path.parent / "figures" / "learned-against-true.png").exists()


def test_jax_is_neither_imported_for_help_nor_started_for_arguments(folder):
    program = """
import contextlib, sys
from jaxinf.run.cli import main
for arguments in (["--help"], ["--version"]):
    with contextlib.suppress(SystemExit):
        main(arguments)
assert not {"jax", "numpy", "tyro", "matplotlib"} & set(sys.modules)
with contextlib.suppress(SystemExit):
    main(["run", "small.py", "--help"])
import jax
jax.config.update("jax_num_cpu_devices", 3)  # raises once a backend is up
"""
    done = outside(folder, "-c", program)
    assert done.returncode == 0, done.stderr
    assert f"jaxinf {jaxinf.__version__}" in done.stdout


PAPERS = """
[[method]]
title = "Restart Sampling for Improving Generative Processes"
function = "jaxinf.sampler.restart"
experiment = "../small.py"
arguments = "--steps 1 --no-progress"
claim = "better"
measured = "0.5 +- 0.1"
status = "works"

[[method]]
title = "A Test of Time"
function = "f"
test = "test_it.py::test_good"
claim = "holds"
measured = "holds"
status = "works"

[[method]]
title = "Neither"
"""


@pytest.fixture
def papers(folder):
    (folder / "experiments").mkdir()
    (folder / "experiments" / "papers.toml").write_text(PAPERS)
    body = "def test_good(): pass\ndef test_bad(): assert False\n"
    (folder / "test_it.py").write_text(body)
    return folder


def test_reproduce_runs_the_experiment(papers, capsys):
    assert main(["reproduce", "restart sampling"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"claim: +better\nmeasured: +0.5 \+- 0.1\n", printed)
    path = Path(printed.splitlines()[-1])
    assert "| steps | 1 |" in path.read_text()


@pytest.mark.parametrize(("name", "status"), [("test_good", 0), ("test_bad", 1)])
def test_reproduce_runs_the_test(papers, name, status):
    (papers / "elsewhere.toml").write_text(PAPERS.replace("test_good", name))
    assert main(["reproduce", "test of time", "--papers", "elsewhere.toml"]) == status


def test_reproduce_complaints(papers, capsys):
    assert main(["reproduce", "Restart Sampler"]) == 2
    assert "Near matches: Restart Sampling for Improving" in complaint(capsys)
    assert main(["reproduce", "neither"]) == 2
    assert "names neither an experiment nor a test" in complaint(capsys)
    assert main(["reproduce", "x", "--papers", "gone.toml"]) == 2
    assert "there is no gone.toml" in complaint(capsys)
    (papers / "bad.toml").write_text("[[")
    assert main(["reproduce", "x", "--papers", "bad.toml"]) == 2
    assert "no valid TOML" in complaint(capsys)
