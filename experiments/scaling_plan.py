"""Weak scaling of a billion-parameter diffusion transformer, estimated from 1 to 1,024 TPU chips.

Command: ``jaxinf run experiments/scaling_plan.py``; any machine, libtpu's compiler is all that it
takes (``pip install 'jaxinf[aot]'``).
Hardware: a CPU, two minutes a pod at this size; ``--width 256 --depth 4 --side 16`` for a look.
Expected: 50 ms a step for the products at every size, and they are the bound from 64 chips on;
traffic to memory 88 ms on one chip and 31 ms from 64 on; the network at most 27 ms. The figures
are estimates: what the compiler puts into each chip's program, over the maker's figures.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pod_transformer

from jaxinf.run import Study, progress
from jaxinf.run.chips import pod
from jaxinf.run.plan import plan


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    topologies: tuple[str, ...] = (
        "v5p:1x1x1",
        "v5p:2x2x1",
        "v5p:2x2x4",
        "v5p:4x4x4",
        "v5p:4x8x8",
        "v5p:8x8x16",
    )
    """Pods, from small to large."""
    images: int = 16
    """Images of a chip a step."""
    fsdp: int = 16
    """Chips at most that divide the parameters; larger pods hold copies."""
    width: int = 1536
    """Of a token."""
    depth: int = 24
    """Blocks."""
    side: int = 32
    """Of a latent image."""


def build(config: Config) -> Study:
    def run(key):
        plans = []
        for name in progress(list(config.topologies), "compile"):
            where = pod(name)
            chips = len(where.devices)
            model = pod_transformer.Config(
                width=config.width,
                depth=config.depth,
                side=config.side,
                batch=config.images * chips,
            )
            mesh = f"fsdp={min(config.fsdp, chips)}"
            plans.append(plan(pod_transformer.build(model), where, mesh))
        names = sorted({name for one in plans for name in one.seconds})
        return {
            "scaling": {
                "chips": np.array([one.devices for one in plans]),
                "gibibytes": np.array([one.memory["total"] / 2**30 for one in plans]),
                "teraflops": np.array([one.flops / 1e12 for one in plans]),
                "compile_seconds": np.array([one.compile_seconds for one in plans]),
            },
            "milliseconds": {
                name: np.array([1e3 * one.seconds.get(name, 0.0) for one in plans])
                for name in names
            },
        }

    return Study(run=run, draw=draw, notes=notes)


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """The bounds against the number of chips."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    chips = arrays["scaling"]["chips"]
    for name, values in reversed(arrays["milliseconds"].items()):
        axis.loglog(chips, np.where(values > 0, values, np.nan), "o-", label=name)
    axis.set_xticks(chips, [str(n) for n in chips])
    axis.minorticks_off()
    axis.set(xlabel="chips", ylabel="milliseconds a step at least (estimate)")
    axis.legend()
    return {"weak-scaling": figure}


def notes(arrays: dict[str, Any]) -> str:
    """The same as a table."""
    columns = {**arrays["scaling"], **{f"{n}, ms": v for n, v in arrays["milliseconds"].items()}}
    rows = zip(*columns.values(), strict=True)
    lines = [" | ".join(columns), " | ".join(["---"] * len(columns))]
    lines += [" | ".join(f"{value:.4g}" for value in row) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)
