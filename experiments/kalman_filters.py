"""Kalman's filter in three forms, beside dynamax and cuthbert.

Command: ``make bench BENCH=kalman_filters``, which installs dynamax and cuthbert.
Hardware: a CPU; float64. Each is one compiled function of the observations that returns their log
evidence; figures are medians over interleaved calls of one run.
Expected (milliseconds for 1,000 times on two cores): with 4 numbers covariances 4.8 beside
dynamax's 5.9, roots 5.5 beside cuthbert's 11.4; with 16 numbers 7.4 beside 10.4, 18 beside 44;
ratios 0.65 to 0.82 and 0.36 to 0.48 over five runs. Blocks are for parallel hardware: here they
take twice as long or more.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, markov
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    sizes: tuple[int, ...] = (4, 16)
    """Numbers of a state, of which half as many are seen."""
    length: int = 1000
    """Times."""
    block: int = 32
    """Times in a block."""
    repetitions: int = 30
    """Timed calls of each, interleaved."""
    peers: bool = True
    """Whether to run dynamax and cuthbert, where they are installed."""


def build(config: Config) -> Study:
    if any(size < 2 for size in config.sizes):
        raise ValueError(
            f"sizes must be at least 2, as half of a state is seen, got {config.sizes}."
        )

    def run(key: Any) -> dict[str, Any]:
        with jax.enable_x64(True):
            return {f"{d} numbers": one(d, config) for d in progress(config.sizes, "sizes")}

    return Study(run=run, draw=draw, notes=notes)


def one(d: int, config: Config) -> dict[str, Any]:
    """Run all filters on one model."""
    rng = np.random.default_rng(0)
    move = jnp.asarray(0.9 * np.linalg.qr(rng.normal(size=(d, d)))[0])
    see = jnp.asarray(rng.normal(size=(d // 2, d)))
    noise, blur = 0.3 * jnp.eye(d), 0.5 * jnp.eye(d // 2)
    transition = markov.linear_gaussian(move, core.dense(noise))
    emission = markov.linear_gaussian(see, core.dense(blur))

    def model(form: Any) -> Any:
        start = core.gaussian(jnp.zeros(d), form(jnp.eye(d)))
        return markov.state_space(start, transition, emission)

    _, y = model(core.dense).sample(jax.random.key(0), config.length)

    def ours(form: Any, block: int | None = None) -> Callable[[], Any]:
        run = jax.jit(lambda y: markov.filter(model(form), y, block=block).log_evidence[-1])
        return lambda: run(y)

    contenders: dict[str, Callable[[], Any]] = {
        "covariances": ours(core.full),
        "roots": ours(core.dense),
        "blocks": ours(core.dense, config.block),
    }
    if config.peers and find_spec("dynamax"):
        contenders["dynamax"] = dynamax(move, see, noise, blur, y)
    if config.peers and find_spec("cuthbert"):
        contenders["cuthbert"] = cuthbert(move, see, noise, blur, y)
    return clock(contenders, config.repetitions)


def clock(contenders: dict[str, Callable[[], Any]], repetitions: int) -> dict[str, Any]:
    """Seconds of the first call and of the later ones, interleaved, and the log evidence."""
    found: dict[str, Any] = {}
    for name, call in contenders.items():
        begin = time.perf_counter()
        value = jax.block_until_ready(call())
        found[name] = {
            "log_evidence": float(value),
            "first": time.perf_counter() - begin,
            "seconds": np.zeros(repetitions),
        }
    for i in range(repetitions):
        for name, call in contenders.items():
            begin = time.perf_counter()
            jax.block_until_ready(call())
            found[name]["seconds"][i] = time.perf_counter() - begin
    return found


def dynamax(move: Any, see: Any, noise: Any, blur: Any, y: Any) -> Callable[[], Any]:
    """Its sequential filter, in covariance form."""
    from dynamax.linear_gaussian_ssm import inference

    start = jnp.zeros(move.shape[0]), jnp.eye(move.shape[0])
    params = inference.make_lgssm_params(*start, move, noise, see, blur)
    run = jax.jit(lambda y: inference.lgssm_filter(params, y).marginal_loglik)
    return lambda: run(y)


def cuthbert(move: Any, see: Any, noise: Any, blur: Any, y: Any) -> Callable[[], Any]:
    """Its sequential filter, in square-root form; it moves before it sees the first."""
    from cuthbert import filter as run_filter
    from cuthbert.gaussian import kalman

    d, m = move.shape[0], see.shape[0]
    roots = jnp.linalg.cholesky(noise), jnp.linalg.cholesky(blur)

    @jax.jit
    def run(y: Any) -> Any:
        made = kalman.build_filter(
            jnp.zeros(d), jnp.eye(d),
            lambda i: (move, jnp.zeros(d), roots[0]),
            lambda i: (see, jnp.zeros(m), roots[1], y[i]),
        )  # fmt: skip
        return run_filter(made, jnp.arange(y.shape[0]), made.init_prepare()).elem.ell[-1]

    return lambda: run(y)


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Milliseconds of a call, all of them and their median."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3), layout="constrained")
    axes = figure.subplots(1, len(arrays), squeeze=False)[0]
    for axis, (title, filters) in zip(axes, arrays.items(), strict=True):
        for place, row in enumerate(filters.values()):
            times = 1e3 * np.asarray(row["seconds"])
            axis.plot(times, np.full(times.size, place), ".", color="C0", alpha=0.3)
            axis.plot(np.median(times), place, "|", color="k", ms=16, mew=2)
        axis.set(title=title, xlabel="milliseconds", xlim=(0, None), yticks=range(len(filters)))
        axis.set_yticklabels(list(filters))
    return {"kalman_filters": figure}


def notes(arrays: dict[str, Any]) -> str:
    """A line a filter."""
    lines = ["| state | filter | log evidence | first call (s) | median (ms) |", "|-|-|-|-|-|"]
    for title, filters in arrays.items():
        for name, row in filters.items():
            lines.append(
                f"| {title} | {name} | {float(row['log_evidence']):.6f} "
                f"| {float(row['first']):.2f} | {1e3 * np.median(row['seconds']):.2f} |"
            )
    return "\n".join(lines)
