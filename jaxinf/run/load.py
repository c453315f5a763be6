"""``jaxinf run FILE``: load the file, parse its Config and the runner's options, run it."""

import dataclasses
import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any

from jaxinf.run.cli import UsageError, find


@dataclasses.dataclass(frozen=True)
class Options:
    """What the runner takes on the command line, beside the experiment's own fields."""

    seed: int = 0
    """Seed of the key and of the batches."""
    seeds: int = 1
    """How many experiments to run at once, with seeds seed, seed + 1, ..."""
    profile: bool = False
    """Trace steps 10 to 20 into the run's folder."""
    out: Path = Path("runs")
    """Where runs are written."""
    progress: bool = True
    """Show progress on stderr."""


def run_file(file: str, rest: list[str]) -> int:
    """Run an experiment file with the arguments that follow it; the exit status."""
    path = _locate(file)
    module = _load(path)
    config_class = _config_class(module, path)
    config, options = _parse(config_class, module, file, rest)
    experiment = module.build(config)

    from jaxinf.run.experiment import Experiment, Study
    from jaxinf.run.ledger import RunError
    from jaxinf.run.runner import run

    if not isinstance(experiment, Experiment | Study):
        raise UsageError(
            f"build(config) in {path} must return a jaxinf.run.Experiment or a jaxinf.run.Study, "
            f"it returned {type(experiment).__name__}."
        )
    try:
        run(
            experiment,
            name=path.stem,
            directory=options.out,
            config=config,
            seed=options.seed,
            seeds=options.seeds,
            profile=options.profile,
            progress=options.progress,
            document=module.__doc__ or "",
            command=shlex.join(["jaxinf", "run", file, *rest]),
        )
    except RunError as error:
        print(f"jaxinf: {error}", file=sys.stderr)
        return 1
    return 0


def _locate(file: str) -> Path:
    """The experiment's file, by path or by name under experiments/."""
    path = Path(file)
    if path.is_file() and path.suffix == ".py":
        return path.resolve()
    if path.is_file():
        raise UsageError(f"{file} is no Python file: its name must end in .py.")
    found = find(f"experiments/{file.removesuffix('.py')}.py")
    if found is None:
        raise UsageError(
            f"there is no file {file}, and no {file.removesuffix('.py')}.py under experiments/. "
            f"`jaxinf new {Path(file).stem}` writes a starting file."
        )
    return found


def _load(path: Path) -> ModuleType:
    """Import a file as a module of a name that shadows no other; its folder goes on sys.path."""
    name = f"jaxinf_experiment_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} cannot be imported.")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    spec.loader.exec_module(module)
    return module


def _config_class(module: ModuleType, path: Path) -> type:
    """The file's Config, checked together with its build."""
    config = getattr(module, "Config", None)
    if config is None:
        raise UsageError(
            f"{path} defines no Config. Write `@dataclass(frozen=True, kw_only=True) class "
            "Config:` with a field for each number that can be changed."
        )
    if not (isinstance(config, type) and dataclasses.is_dataclass(config)):
        raise UsageError(
            f"Config in {path} is no dataclass. Write @dataclass(frozen=True, kw_only=True) "
            "above it."
        )
    if not config.__dataclass_params__.frozen:  # pyrefly: ignore
        raise UsageError(f"Config in {path} is not frozen. Write @dataclass(frozen=True).")
    if not callable(getattr(module, "build", None)):
        raise UsageError(
            f"{path} defines no build. Write `def build(config: Config) -> Experiment:`."
        )
    clash = {field.name for field in dataclasses.fields(config)} & {
        field.name for field in dataclasses.fields(Options)
    }
    if clash:
        name = min(clash)
        raise UsageError(
            f"the field {name} of Config in {path} and the runner's option --{name} have the same "
            "name. Rename the field."
        )
    return config


def _parse(config: type, module: ModuleType, file: str, rest: list[str]) -> tuple[Any, Options]:
    """Config and options from the command line; tyro explains and exits with 2 where it cannot."""
    import tyro

    flat = tyro.conf.arg(name="")
    arguments = dataclasses.make_dataclass(
        "Arguments", [("config", Annotated[config, flat]), ("options", Annotated[Options, flat])]
    )
    parsed = tyro.cli(
        arguments, args=rest, prog=f"jaxinf run {file}", description=module.__doc__ or ""
    )
    return parsed.config, parsed.options
