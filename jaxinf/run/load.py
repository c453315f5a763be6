"""``jaxinf run FILE``: load the file, parse its Config and the runner's options, run it."""

import dataclasses
import importlib.util
import shlex
import sys
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, NamedTuple

from jaxinf.run.cli import find
from jaxinf.run.distributed import Job, join, leaving
from jaxinf.run.distributed import parse as parse_job
from jaxinf.run.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Options(Job):
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
    mesh: str = ""
    """Sizes of the mesh's axes slice, data, fsdp, sequence, tensor: data=4,fsdp=2. What is not
    named goes to data."""
    rule: tuple[str, ...] = ()
    """Where leaves of the state lie, before the experiment's rules: qkv/kernel=fsdp,tensor"""
    resume: bool = False
    """Go on from the newest checkpoint of the newest run of this name, or of --folder; start where
    there is none."""
    folder: Path | None = None
    """The run's folder, in place of a new one named by the time."""
    checkpoints: str | None = None
    """Where checkpoints lie, gs://BUCKET/NAME say; in the run's folder by default."""
    checkpoint_every: int | None = None
    """Steps from one checkpoint to the next, 0 for none; by default ten checkpoints in all, none in
    runs of fewer than 100 steps."""
    keep: int = 3
    """How many checkpoints stay."""


def run_file(file: str, rest: list[str]) -> int:
    """Run an experiment file with the arguments that follow it; the exit status."""
    path = _locate(file)
    if not {"--help", "-h"} & set(rest):
        join(parse_job(rest))
    with leaving():
        return _run_file(path, file, rest)


def _run_file(path: Path, file: str, rest: list[str]) -> int:
    """Run it in a job that has been joined."""
    source = read(file)
    module = source.module
    config, options = parse(source, rest)

    from jaxinf.run.checkpoints import INTERRUPTED, Terminated
    from jaxinf.run.ledger import RunError
    from jaxinf.run.mesh import parse_rule
    from jaxinf.run.runner import run
    from jaxinf.run.setting import Setting

    _keep_programs(options.out)
    experiment = build(source, config)
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
            setting=Setting(
                mesh=options.mesh,
                rules=tuple(map(parse_rule, options.rule)),
                folder=options.folder,
                every=options.checkpoint_every,
                keep=options.keep,
                path=options.checkpoints,
                resume=options.resume,
            ),
        )
    except RunError as error:
        print(f"jaxinf: {error}", file=sys.stderr)
        return INTERRUPTED if isinstance(error, Terminated) else 1
    return 0


def _keep_programs(out: Path) -> None:
    """Keep compiled programs beside the runs, unless the user keeps them elsewhere."""
    import jax

    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(out.resolve() / ".programs"))


class Source(NamedTuple):
    """An experiment's file, imported."""

    file: str
    path: Path
    module: ModuleType
    config: type


def read(file: str, options: type = Options) -> Source:
    """Import an experiment's file, and check its Config against a command's options."""
    path = _locate(file)
    module = _load(path)
    return Source(file, path, module, _config_class(module, path, options))


def build(source: Source, config: Any) -> Any:
    """What a file's build makes of a configuration, an Experiment or a Study."""
    experiment = source.module.build(config)

    from jaxinf.run.experiment import Experiment, Study

    if not isinstance(experiment, Experiment | Study):
        raise UsageError(
            f"build(config) in {source.path} must return a jaxinf.run.Experiment or a "
            f"jaxinf.run.Study, it returned {type(experiment).__name__}."
        )
    return experiment


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


def _config_class(module: ModuleType, path: Path, options: type) -> type:
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
        field.name for field in dataclasses.fields(options)
    }
    if clash:
        name = min(clash)
        raise UsageError(
            f"the field {name} of Config in {path} and the runner's option --{name} have the same "
            "name. Rename the field."
        )
    return config


def parse(
    source: Source, rest: list[str], options: Any = Options, verb: str = "run"
) -> tuple[Any, Any]:
    """Config and options from the command line; tyro explains and exits with 2 where it cannot."""
    import tyro

    flat = tyro.conf.arg(name="")
    arguments = dataclasses.make_dataclass(
        "Arguments",
        [("config", Annotated[source.config, flat]), ("options", Annotated[options, flat])],
    )
    parsed = tyro.cli(
        arguments,
        args=rest,
        prog=f"jaxinf {verb} {source.file}",
        description=source.module.__doc__ or "",
    )
    return parsed.config, parsed.options
