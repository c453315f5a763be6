"""What the runner costs: its training loop against the bare jitted step.

Command: ``jaxinf run experiments/runner_overhead.py``
Hardware: any; a ratio within one run, interleaved, of the medians.
Expected: 0.90 to 0.97 at steps of 5 ms, as the runner makes the next batch while a step computes;
in short runs its set-up shows, 0.2 s.
"""

import contextlib
import io
import tempfile
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf.run import Experiment, Setting, Study, progress, run


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    width: int = 400
    """Of the matrices that a step multiplies."""
    steps: int = 1500
    """Steps of a run."""
    repetitions: int = 5
    """Runs of each, interleaved."""


class Cost(NamedTuple):
    """Medians over the repetitions."""

    bare_step: Any
    """Seconds."""
    runner_step: Any
    """Seconds."""
    ratio: Any


def build(config: Config) -> Study:
    def init(key):
        return jax.random.normal(key, (config.width, config.width)) / config.width**0.5

    def step(key, state, batch):
        for _ in range(3):
            state = jnp.tanh(state @ state + 1e-3 * jnp.mean(batch))
        return state, {"loss": jnp.mean(state**2)}

    def batch(seed, step, index):
        return np.full((len(index), 64), seed + step, np.float32)

    experiment = Experiment(
        init=init, step=step, batch=batch, evaluate={}, draw=lambda arrays: {},
        steps=config.steps, batch_size=64,
    )  # fmt: skip
    bare = jax.jit(step, donate_argnums=1)

    def by_hand() -> float:
        key = jax.random.key(0)
        state = init(key)
        state, _ = bare(key, state, batch(0, 0, np.arange(64)))
        start = time.perf_counter()
        for i in range(config.steps):
            rows = jax.device_put(batch(0, i, np.arange(64)))
            state, _ = bare(jax.random.fold_in(key, i), state, rows)
        jax.block_until_ready(state)
        return (time.perf_counter() - start) / config.steps

    def by_runner() -> float:
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            path = run(
                experiment, name="overhead", directory=folder, config={}, progress=False,
                setting=Setting(every=0),
            )  # fmt: skip
            (line,) = [one for one in path.read_text().splitlines() if one.startswith("| train |")]
        return float(line.split("|")[2]) / config.steps

    def study(key: Any) -> dict[str, Any]:
        times = [(by_hand(), by_runner()) for _ in progress(config.repetitions, "runs")]
        hand, runner = np.array(times).T
        return {
            "cost": Cost(np.median(hand), np.median(runner), np.median(runner) / np.median(hand))
        }

    return Study(run=study, draw=lambda arrays: {})
