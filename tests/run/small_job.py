"""What several processes run: a map that is fitted, and samples that are drawn with it."""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec
from matplotlib.figure import Figure

from jaxinf import core, nets, process, sampler
from jaxinf.run import Experiment
from jaxinf.run.mesh import Rule


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    steps: int = 40
    """Training steps."""
    pause: float = 0.0
    """Seconds that a batch takes to make."""
    width: int = 64
    """Numbers in an example."""


def build(config):
    p = process.gaussian(process.cosine(t_max=0.99))
    width = config.width

    def loss(params, key, batch):
        x = core.spread(batch)
        noise = 0.1 * jax.random.normal(key, x.shape)
        return jnp.mean((jnp.tanh((x + noise) @ params["map"]) - x) ** 2), None

    training = nets.training(loss, optax.adam(1e-2))

    def batch(seed, step, index):
        time.sleep(config.pause)
        rows = [np.random.default_rng([seed, step, i]).normal(size=width) for i in index]
        return np.asarray(rows, np.float32)

    def drawn(key, state):
        x = p.prior().sample(key, (16, width))
        return sampler.sample(
            key, sampler.ancestral(p), Denoiser(state.average["map"]), sampler.uniform(p, 4), x
        ).x

    def final(key, state):
        return jax.lax.with_sharding_constraint(state.params["map"], PartitionSpec())

    return Experiment(
        init=lambda key: training.init({"map": jax.random.normal(key, (width, width)) / 8}),
        step=training.step,
        batch=batch,
        evaluate={"drawn": drawn, "final": final},
        draw=lambda arrays: {"map": _picture(arrays)},
        steps=config.steps,
        batch_size=16,
        rules=(Rule("params/map", ("fsdp", "tensor")),),
    )


@core.record
class Denoiser:
    """A denoiser with one matrix."""

    matrix: core.Leaf

    def __call__(self, x, t, cond=None):
        return 0.5 * jnp.tanh(x @ self.matrix)


def _picture(arrays):
    figure = Figure()
    figure.subplots().imshow(arrays["final"])
    return figure
