"""``jaxinf plan FILE``: plans for several pods, meshes and fields, as a table and as JSON."""

import dataclasses
import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from jaxinf.run.chips import Pod, pod
from jaxinf.run.errors import UsageError
from jaxinf.run.load import build, parse, read
from jaxinf.run.plan import Plan, places, plan


@dataclasses.dataclass(frozen=True)
class Options:
    """What ``jaxinf plan`` takes on the command line, beside the experiment's own fields.

    JAX's own JAX_OPTIMIZATION_LEVEL=O1 halves the time to compile, at some loss of likeness.
    """

    topology: tuple[str, ...]
    """Pods to compile for, one or several: v5p:4x4x4, two slices as 2*v5p:4x4x4, GPUs as h100:8."""
    mesh: str = ""
    """Sizes of the mesh's axes: fsdp=64,tensor=2; what is not named goes to data."""
    rule: tuple[str, ...] = ()
    """Where leaves lie, over the experiment's rules: qkv/kernel=fsdp,tensor."""
    sweep: str = ""
    """Values to compare, of the mesh or of a field: mesh=fsdp=64;data=8,fsdp=8"""
    json: Path | None = None
    """Where to write all of it as JSON."""


@dataclasses.dataclass(frozen=True)
class _Case:
    """One line of the table."""

    label: str
    experiment: Any
    pod: Pod
    mesh: str
    rules: tuple[Any, ...]


def plan_file(file: str, rest: list[str]) -> int:
    """Plan an experiment's file with the arguments that follow it; 1 where nothing fits."""
    source = read(file, Options)
    _, options = parse(source, rest, Options, "plan")
    name, _, values = options.sweep.partition("=")
    if options.sweep and not values:
        raise UsageError(f"a sweep is NAME=VALUE;VALUE, got {options.sweep!r}: batch=256;512")
    pods = [pod(text) for text in options.topology]
    cases = []
    for value in values.split(";"):
        extra = [f"--{name.replace('_', '-')}", value.strip()] if values else []
        config, options = parse(source, [*rest, *extra], Options, "plan")
        experiment = build(source, config)
        label = f"{name}={value.strip()}" if values else ""
        cases += [_case(label, experiment, one, options) for one in pods]
    plans = []
    for case in cases:
        print(f"compiling for {case.pod.name} {case.label}", file=sys.stderr, flush=True)
        plans.append(_planned(case))
    if len(plans) == 1:
        print(describe(plans[0]))
    else:
        print(table([case.label for case in cases], plans))
    if options.json:
        found = [{"sweep": c.label, **p._asdict()} for c, p in zip(cases, plans, strict=True)]
        options.json.write_text(json.dumps(found, indent=2) + "\n")
    return 0 if any(one.fits for one in plans) else 1


def _case(label: str, experiment: Any, where: Pod, options: Options) -> _Case:
    """Check one line of the table before anything is compiled."""
    from jaxinf.run.experiment import Experiment
    from jaxinf.run.mesh import make_mesh, parse_rule

    if not isinstance(experiment, Experiment):
        raise UsageError("a Study has no step to plan. Plan an Experiment.")
    try:
        rules = tuple(parse_rule(text) for text in options.rule)
        places(experiment, make_mesh(options.mesh, where.devices), rules)
    except (ValueError, TypeError) as error:
        raise UsageError(f"{where.name}: {error}") from None
    return _Case(label, experiment, where, options.mesh, rules)


def _planned(case: _Case) -> Plan:
    """Plan one line; what the compiler refuses is the user's to mend."""
    import jax

    try:
        return plan(case.experiment, case.pod, case.mesh, case.rules)
    except jax.errors.JaxRuntimeError as error:
        raise UsageError(f"the compiler for {case.pod.name} refuses this step: {error}") from None


def table(labels: list[str], plans: list[Plan]) -> str:
    """Return a line a plan, the fastest that fits marked."""
    head = ["topology", "sweep", "mesh", "GiB", "of", "TFLOP", "ms at least", "bound", "compile s"]
    rows = []
    fitting = [slowest(one) for one in plans if one.fits]
    for label, one in zip(labels, plans, strict=True):
        best = one.fits and slowest(one) == min(fitting)
        rows.append([
            ("* " if best else "  ") + one.topology, label, _mesh(one),
            _gib(one.memory["total"]), _gib(one.memory["capacity"]), f"{one.flops / 1e12:.3g}",
            f"{1e3 * slowest(one):.3g}" if one.seconds else "does not fit" ,
            one.bound if one.seconds else "", f"{one.compile_seconds:.1f}",
        ])  # fmt: skip
    widths = [max(len(str(row[i])) for row in [head, *rows]) for i in range(len(head))]
    lines = ["  ".join(str(c).ljust(w) for c, w in zip(r, widths, strict=True)) for r in
             [head, *rows]]  # fmt: skip
    foot = "A device each; estimates. * the least time of a step among those that fit."
    return "\n".join([*(line.rstrip() for line in lines), foot])


def slowest(one: Plan) -> float:
    """Return the seconds that the bound allows at best."""
    return max(one.seconds.values(), default=float("inf"))


def describe(one: Plan) -> str:
    """Return all of a plan."""
    memory = one.memory
    lines = [
        f"{one.topology}, {one.devices} devices, mesh {_mesh(one)}; compiled in "
        f"{one.compile_seconds:.1f} s",
        "",
        f"memory of a device   {_gib(memory['total'])} of {_gib(memory['capacity'])} GiB: "
        + ("fits" if one.fits else "DOES NOT FIT"),
    ]
    parts = [name for name in memory if name not in ("total", "capacity")]
    lines += [f"  {name:<18} {_gib(memory[name])}" for name in parts]
    if one.seconds:
        lines += [
            "",
            f"operations           {one.flops / 1e12:.4g} TFLOP a device (products, convolutions)",
            f"memory traffic       {_gib(one.bytes)} GiB a device",
            "collectives          kind, axes, devices of a group, how many, GiB, GiB sent",
        ]
        lines += [
            f"  {c['kind']:<18} {'+'.join(c['axes']):<12} {c['size']:>5} {c['count']:>6} "
            f"{_gib(c['bytes'])} {_gib(c['sent'])}"
            for c in one.collectives
        ] or ["  none"]
        lines += ["", "a step takes at least (estimates, at the maker's figures)"]
        lines += [
            f"  {name:<18} {1e3 * value:8.3f} ms{'   <- the bound' * (name == one.bound)}"
            for name, value in one.seconds.items()
        ]
    if not one.fits or not one.seconds:
        lines += ["", "largest arrays of a device, GiB"]
        lines += [f"  {_gib(a['bytes'])} {a['array']} {a['source']}" for a in one.largest]
    lines += ["", *(textwrap.fill(f"- {remark}", 100) for remark in one.remarks)]
    return "\n".join(lines).rstrip()


def _mesh(one: Plan) -> str:
    """Return the axes of a plan's mesh."""
    return ",".join(f"{name}={size}" for name, size in one.mesh.items()) or "one device"


def _gib(size: float | int) -> str:
    """Return bytes as GiB."""
    return f"{size / 2**30:.3g}"
