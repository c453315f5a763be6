"""The command line: ``jaxinf run``, ``plan``, ``new`` and ``reproduce``."""

import argparse
import importlib.util
import os
import shlex
import sys
import textwrap
from pathlib import Path

import jaxinf
from jaxinf.run.errors import UsageError


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
      argv: the arguments after ``jaxinf``; those of the process by default.

    Returns:
      The exit status: 0, 1 for a run that is incomplete, 2 for a wrong call, 130 for an
      interrupted one.
    """
    arguments = _parser().parse_args(argv)
    os.environ.setdefault("MPLBACKEND", "agg")
    _look_for_no_tpu()
    try:
        return arguments.command(arguments)
    except UsageError as error:
        print(textwrap.fill(f"jaxinf: {error}", 100, break_long_words=False), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("jaxinf: interrupted", file=sys.stderr)
        return 130


def _look_for_no_tpu() -> None:
    """Keep JAX from complaining where libtpu serves as a compiler and there is no accelerator."""
    kinds = ("accel*", "vfio/[0-9]*", "nvidia*")
    found = any(any(Path("/dev").glob(kind)) for kind in kinds)
    if importlib.util.find_spec("libtpu") and not found:
        os.environ.setdefault("JAX_PLATFORMS", "cpu")


def _parser() -> argparse.ArgumentParser:
    """The parser of everything but an experiment's own fields."""
    parser = argparse.ArgumentParser(prog="jaxinf", description="Run jaxinf's experiments.")
    parser.add_argument("--version", action="version", version=f"jaxinf {jaxinf.__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    run = commands.add_parser(
        "run",
        help="run an experiment file",
        usage="jaxinf run FILE [--field value ...] [--seed N] [--seeds K] [--profile] [--out DIR] "
        "[--no-progress]",
        description="Run an experiment and write a report. `jaxinf run FILE --help` lists its "
        "fields and all options.",
    )
    run.add_argument("file", metavar="FILE", help="a .py file, or a name under experiments/")
    run.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(command=_run)

    plan = commands.add_parser(
        "plan",
        help="compile an experiment's step for a pod that need not be there",
        usage="jaxinf plan FILE --topology v5p:4x4x4 [...] [--mesh fsdp=64] [--field value ...]",
        description="Estimate memory, operations, collectives and bounds of an experiment's step. "
        "`jaxinf plan FILE --help` lists all options.",
    )
    plan.add_argument("file", metavar="FILE", help="a .py file, or a name under experiments/")
    plan.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    plan.set_defaults(command=_plan)

    new = commands.add_parser("new", help="write a starting experiment file")
    new.add_argument("name", metavar="NAME", help="the file to write, .py or not")
    new.set_defaults(command=_new)

    reproduce = commands.add_parser("reproduce", help="run what reproduces a paper")
    reproduce.add_argument("title", metavar="TITLE", help="the paper's title, or a part of it")
    reproduce.add_argument("--papers", type=Path, help="default: experiments/papers.toml")
    reproduce.set_defaults(command=_reproduce)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    """``jaxinf run``."""
    from jaxinf.run.load import run_file

    return run_file(arguments.file, arguments.rest)


def _plan(arguments: argparse.Namespace) -> int:
    """``jaxinf plan``."""
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # compilers are asked, devices are not
    from jaxinf.run.planner import plan_file

    return plan_file(arguments.file, arguments.rest)


def _new(arguments: argparse.Namespace) -> int:
    """``jaxinf new``."""
    from jaxinf.run.template import TEMPLATE

    path = Path(arguments.name)
    path = path if path.suffix == ".py" else path.with_name(f"{path.name}.py")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(TEMPLATE.replace("NAME", path.stem))
    except FileExistsError:
        raise UsageError(f"{path} exists and is left as it is. Give another name.") from None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}. Make its folder first.") from None
    print(f"wrote {path}; run it with:\njaxinf run {shlex.quote(str(path))}")
    return 0


def _reproduce(arguments: argparse.Namespace) -> int:
    """``jaxinf reproduce``."""
    from jaxinf.run.reproduce import reproduce

    return reproduce(arguments.title, arguments.papers)


def find(relative: str) -> Path | None:
    """A file by its path relative to the working directory or to the repository."""
    for root in (Path.cwd(), Path(jaxinf.__file__).resolve().parents[1]):
        if (root / relative).is_file():
            return root / relative
    return None
