"""A tiny experiment with a knob for each thing that the runner's tests look at."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure

from jaxinf.run import Experiment, run

ROWS = 8


def batch(seed, step, index):
    return {"x": np.random.default_rng((seed, step)).normal(size=(ROWS, 3)).astype("f4")[index]}


def init(key):
    return {
        "weights": jax.random.normal(key, (3,)),
        "count": jnp.zeros((), jnp.int32),
        "key": key,
    }


def step(key, state, batch):
    """Move the weights by data and noise; the loss is one more than the number of steps before."""
    noise = 0.1 * jax.random.normal(key, (3,))
    weights = 0.9 * state["weights"] + batch["x"].mean(0) + noise
    loss = 1.0 + state["count"]
    new = {"weights": weights, "count": state["count"] + 1, "key": state["key"]}
    return new, {"loss": loss, "norm": jnp.sqrt((weights**2).sum())}


def final(key, state):
    return {"weights": state["weights"], "largest": state["weights"].max()}


def noise(key, state):
    return jax.random.normal(key)


def draw(arrays):
    figure = Figure()
    figure.subplots().plot(np.atleast_1d(arrays["final"]["weights"]))
    return {"weights": figure}


def tiny(**changes):
    fields = {
        "init": init,
        "step": step,
        "batch": batch,
        "evaluate": {"final": final, "noise": noise},
        "draw": draw,
        "steps": 6,
        "batch_size": ROWS,
    }
    return Experiment(**(fields | changes))


def go(experiment, directory, **options):
    """Run quietly; the run's folder."""
    options = {"name": "tiny", "config": {"rate": 0.1}, "progress": False} | options
    return run(experiment, directory=directory, **options).parent


def only(directory):
    """The folder of the only run under a directory."""
    (folder,) = Path(directory, "tiny").iterdir()
    return folder


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def results(folder):
    with np.load(folder / "arrays.npz") as found:
        return dict(found)
