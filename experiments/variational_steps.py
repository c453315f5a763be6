"""Variational inference beside flowjax and NumPyro: the time of a step, and where it leads.

Command: ``make bench BENCH=variational_steps``, which installs flowjax.
Hardware: 2 CPU cores, 10 minutes; medians of interleaved steps over two runs beside other work.
Expected: time of a step beside jaxinf's. Funnel: flowjax's loss in a scan 0.96 to 1.06, its loop
7.4 to 9.1 with 16 draws and 2.1 to 2.5 with 200. Cone: NumPyro's run, which compiles at each call,
25 to 62 with 1 particle and 6.7 to 9.0 with 64, compiled once 0.3 to 0.5 and 1.0. Digits: 0.91 to
0.96. Bounds: funnel -0.205 and -0.026, flowjax's -0.123 and -0.034 (with 16 draws it gains by a
start off the identity); cone -8.95 and -8.077, the same; digits -22.17 trained with 1 draw,
NumPyro's -22.43 (Trace) and -22.15 (TraceMeanField), six fits; trained with 50 -21.84 and -21.82.
"""

import time
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import digits_vae
import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import variational_peers as peers
from normalizing_flows import DIM, funnel, log_weights

from jaxinf import data, grad, target, vi
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    only: tuple[str, ...] = ()
    """Of funnel, cone and digits; all by default."""
    repetitions: int = 7
    """Fits of the funnel and of the cone, interleaved."""
    funnel_draws: tuple[int, ...] = (16, 200)
    """Draws of a step."""
    funnel_steps: int = 2000
    layers: int = 8
    """Affine couplings of the funnel's flow."""
    particles: tuple[int, ...] = (1, 64)
    """Draws of a step on the cone."""
    cone_steps: int = 5000
    digit_draws: tuple[int, ...] = (1, 50)
    """Of the auto-encoders' training objectives."""
    digit_steps: int = 8000
    digit_fits: int = 1
    """Auto-encoders of each kind, from seeds of their own."""
    evaluated: int = 200_000
    """Draws of the bounds of flows and guides."""
    peers: bool = True
    """Whether to run flowjax, where it is installed, and NumPyro."""


def build(config: Config) -> Study:
    """Return the study."""
    parts = {"funnel": funnel_cases, "cone": cone_cases, "digits": digits_cases}
    unknown = set(config.only) - set(parts)
    if unknown:
        raise ValueError(f"there is no {sorted(unknown)}; there are {sorted(parts)}.")

    def run(key: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name in config.only or tuple(parts):
            found |= parts[name](key, config)
        return found

    return Study(run=run, draw=draw, notes=notes)


def funnel_cases(key: Any, config: Config) -> dict[str, Any]:
    """Neal's funnel by affine couplings: flows of the same shape, 12,644 parameters each."""
    key_flow, key_race = jax.random.split(key)
    posterior = target.density(funnel, jnp.zeros(DIM))
    family = vi.affine_coupling_flow(key_flow, DIM, config.layers)
    steps = config.funnel_steps
    schedule = optax.cosine_decay_schedule(5e-3, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))

    def ours(draws: int) -> peers.Contender:
        fit = partial(
            vi.approximate, target=posterior, family=family, objective=vi.elbo(draws),
            steps=steps, optimizer=optimizer,
        )  # fmt: skip

        def weights(key: Any, found: Any) -> Any:
            return log_weights(key, posterior, found.params, config.evaluated)

        return peers.Contender(lambda key: fit(key), weights)

    cases = {}
    for draws in config.funnel_draws:
        contenders = {"jaxinf": ours(draws)}
        if config.peers and find_spec("flowjax"):
            contenders |= peers.flowjax(
                key_flow, lambda z: funnel(None, z), DIM, config.layers, draws, steps, optimizer,
                config.evaluated,
            )  # fmt: skip
        cases[f"funnel, {draws} draws"] = race(key_race, contenders, steps, config)
    return cases


def cone_cases(key: Any, config: Config) -> dict[str, Any]:
    """The noisy cone of programmable variational inference, by a guide of independent normals."""
    steps, seen = config.cone_steps, 5.0
    schedule = optax.cosine_decay_schedule(2e-2, steps)
    # gradients of order 1e4 at the start would be remembered for thousands of steps
    optimizer = optax.chain(optax.clip_by_global_norm(10.0), optax.adam(schedule))

    @jax.jit
    def weights(key: Any, found: Any) -> Any:
        measures = vi.pair(
            grad.annotate(peers.cone, seen), grad.annotate(peers.mean_field, seen, params=found[0])
        )

        def one(key: Any) -> Any:
            return vi.elbo()(key, measures)[1].bound

        return jax.vmap(one)(jax.random.split(key, config.evaluated))

    def ours(particles: int) -> peers.Contender:
        objective = vi.elbo(particles)

        def fit(key: Any) -> Any:
            found = vi.svi(
                key, peers.cone, peers.mean_field, seen, objective=objective, steps=steps,
                optimizer=optimizer,
            )  # fmt: skip
            return found.params, found.info

        return peers.Contender(fit, weights)

    cases = {}
    for particles in config.particles:
        contenders = {"jaxinf": ours(particles)}
        if config.peers:
            contenders |= peers.numpyro_svi(
                peers.cone, peers.mean_field, seen, particles, steps, optimizer, weights
            )
        name = f"cone, {particles} particle" + "s" * (particles > 1)
        cases[name] = race(key, contenders, steps, config, peers.where)
    return cases


def race(key: Any, contenders: Any, steps: int, config: Config, describe: Any = None) -> Any:
    """Seconds of a step of interleaved fits, after a first one each, and where they led."""
    key_first, key_bound, *keys = jax.random.split(key, 2 + config.repetitions)
    found: dict[str, Any] = {name: [] for name in contenders}
    for one in contenders.values():
        jax.block_until_ready(one.fit(key_first))
    for key_fit in progress(keys, "fits"):
        for name, one in contenders.items():
            begin = time.perf_counter()
            fitted = jax.block_until_ready(one.fit(key_fit))
            seconds = (time.perf_counter() - begin) / steps
            values = np.asarray(one.log_weights(key_bound, fitted), np.float64)
            row = {"seconds": seconds, "bound": values.mean(),
                   "error": values.std() / np.sqrt(values.size)}  # fmt: skip
            found[name].append(row if describe is None else row | {"where": describe(fitted)})
    return {name: jax.tree.map(lambda *a: np.array(a), *rows) for name, rows in found.items()}


def digits_cases(key: Any, config: Config) -> dict[str, Any]:
    """Auto-encoders of digits: digits_vae.py's own steps, and NumPyro's on the same batches."""
    cases = {}
    for draws in config.digit_draws:
        options = digits_vae.Config(draws=draws, steps=config.digit_steps)
        experiment = digits_vae.build(options)
        rate = optax.cosine_decay_schedule(options.learning_rate, options.steps)
        contenders: dict[str, Any] = {"jaxinf": (experiment.step, lambda state: state.average)}
        if config.peers:
            contenders |= peers.numpyro_digits(
                draws, optax.adam(rate), digits_vae.means_and_scales, digits_vae.decode,
                digits_vae.binarise, options.latent,
            )  # fmt: skip
        rows = [
            train(jax.random.fold_in(key, i), i, experiment, contenders, options)
            for i in range(config.digit_fits)
        ]
        name = f"digits, {draws} draw" + "s" * (draws > 1)
        cases[name] = jax.tree.map(lambda *a: np.stack(a), *rows)
    return cases


CHUNK = 500
"""Training steps of a compiled call."""


def train(
    key: Any, seed: int, experiment: Any, contenders: dict[str, Any], options: Any
) -> dict[str, Any]:
    """Train all from one start on the same batches, in turns; weigh the test digits."""
    key_start, key_steps, key_bound = jax.random.split(key, 3)
    start = experiment.init(key_start)
    params, shape = jax.flatten_util.ravel_pytree(start.params)
    params = shape(params + 1e-3 * jax.random.normal(key_start, params.shape))
    # at logits of exactly zero NumPyro's Bernoulli has a wrong derivative
    start = start._replace(params=params, average=params)
    index = np.arange(options.batch)
    states, calls, seconds = {}, {}, {name: [] for name in contenders}
    for name, (step, *rest) in contenders.items():
        states[name] = start if len(rest) == 1 else rest[1](key_start, start.params, options.batch)
        calls[name] = jax.jit(partial(jax.lax.scan, lambda s, a, step=step: step(a[0], s, a[1])))
    for chunk in progress(options.steps // CHUNK, f"auto-encoders, {options.draws} draws"):
        steps = range(chunk * CHUNK, (chunk + 1) * CHUNK)
        levels = jnp.asarray(np.stack([experiment.batch(seed, i, index) for i in steps]))
        keys = jax.vmap(partial(jax.random.fold_in, key_steps))(jnp.array(steps))
        for name, call in calls.items():
            begin = time.perf_counter()
            states[name] = jax.block_until_ready(call(states[name], (keys, levels)))[0]
            seconds[name].append((time.perf_counter() - begin) / CHUNK)
    test = digits_vae.binarise(jax.random.key(0), jnp.asarray(data.digits().test.x))
    found = {}
    for name, (_, networks, *_) in contenders.items():
        encoder, decoder = networks(states[name])
        model = vi.autoencoder(
            digits_vae.means_and_scales, digits_vae.decode, encoder, decoder, options.latent
        )
        each = np.asarray(vi.bounds(key_bound, model, test, 50).each)
        found[name] = {"seconds": np.array(seconds[name][1:]), "each": each}  # the first compiles
    return found


def spread(row: dict[str, Any]) -> np.ndarray:
    """Return the bounds that are compared in pairs: of fits, or of test digits."""
    return np.asarray(row["each"]).mean(axis=0) if "each" in row else np.asarray(row["bound"])


def ordered(fits: dict[str, Any]) -> list[tuple[str, Any]]:
    """Return the fits, jaxinf's first."""
    return sorted(fits.items(), key=lambda item: (item[0] != "jaxinf", item[0]))


def stated(values: np.ndarray) -> str:
    """Return a mean and its standard error."""
    return f"{values.mean():.3f} ({values.std(ddof=1) / np.sqrt(values.size):.3f})"


def notes(arrays: dict[str, Any]) -> str:
    """A line a fit: time beside ours, the bound, and the difference in pairs from ours."""
    head = ["case", "fit", "µs a step", "beside jaxinf's", "bound", "more than jaxinf's", "at"]
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for case, fits in arrays.items():
        for name, row in ordered(fits):
            seconds, own = np.ravel(row["seconds"]), np.ravel(fits["jaxinf"]["seconds"])
            more = stated(spread(row) - spread(fits["jaxinf"])) if name != "jaxinf" else ""
            at = np.median(row["where"], axis=0) if "where" in row else ()
            lines.append(" | ".join([
                case, name, f"{1e6 * np.median(seconds):.3g}", f"{np.median(seconds / own):.2f}",
                stated(spread(row)), more, ", ".join(f"{a:.3f}" for a in at),
            ]))  # fmt: skip
    text = (
        "\n\nIn brackets standard errors, over fits or over test digits. Where the cone's guide "
        "ends: distance from the origin, lesser and greater scale."
    )
    digits = [spread(fits["jaxinf"]) for case, fits in arrays.items() if case.startswith("digits")]
    if len(digits) > 1:
        text += f" The last auto-encoder is above the first by {stated(digits[-1] - digits[0])}."
    return "\n".join(f"| {line} |" for line in lines) + text


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Times of a step beside ours, all and their medians; test digits' bounds in pairs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 0.8 + 0.33 * sum(map(len, arrays.values()))), layout="constrained")
    axis = figure.subplots()
    labels: list[str] = []
    for i, (case, fits) in enumerate(arrays.items()):
        own = np.ravel(fits["jaxinf"]["seconds"])
        for name, row in ordered(fits):
            ratio = np.ravel(row["seconds"]) / (np.median(own) if name == "jaxinf" else own)
            axis.plot(ratio, np.full(ratio.size, len(labels)), ".", color=f"C{i}", alpha=0.3)
            axis.plot(np.median(ratio), len(labels), "|", color="k", ms=12, mew=2)
            labels.append(f"{case}: {name}")
    axis.axvline(1, color="0.6", lw=0.8, zorder=0)
    axis.set_xscale("log", base=2)
    axis.xaxis.set_major_formatter("{x:g}")
    axis.set(xlabel="time of a step beside jaxinf's", yticks=range(len(labels)))
    axis.set_yticklabels(labels)
    axis.invert_yaxis()
    figures = {"times": figure}
    digits = {case: fits for case, fits in arrays.items() if case.startswith("digits")}
    pairs = [(case, name) for case, fits in digits.items() for name in fits if name != "jaxinf"]
    if pairs:
        figures["digits"] = Figure(figsize=(3.2 * len(pairs), 3.2), layout="constrained")
        axes = figures["digits"].subplots(1, len(pairs), squeeze=False)[0]
        for axis, (case, name) in zip(axes, pairs, strict=True):
            ours, other = spread(digits[case]["jaxinf"]), spread(digits[case][name])
            axis.plot(other, ours, ".", alpha=0.4)
            axis.axline((ours.mean(), ours.mean()), slope=1, color="0.6", lw=0.8)
            axis.set(xlabel=name, ylabel="jaxinf", title=case, aspect="equal")
        figures["digits"].supylabel("bound of a test digit, nats")
    return figures
