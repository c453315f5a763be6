"""Rare events of a chaotic system, by guidance of a diffusion model of its trajectories.

Paper: M. Finzi et al., "User-defined Event Sampling and Uncertainty Quantification in Diffusion
Models for Physical Dynamical Systems" (2023), with trajectories of Lorenz' system of 1963 at 20
times. A model is trained on all of them; an event that no one had in mind then, here that the mean
of the first coordinate is in its upper tail, which keeps a trajectory in one lobe, is asked for
afterwards (``guide.interval``). Held against the model's own draws by their event's probability,
and against the system's.
Command: ``jaxinf run experiments/lorenz_events.py``; 10 minutes on cores that others shared.
Expected, one seed: probability 0.0226 by rejection, 0.0217 by weighted particles (0.0235 of the
system's own trajectories); statistics given the event within 1 % of the rejected draws' when
weighted and within 16 % as guided: spread of z 0.562, 0.559 and 0.616.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinf import core, guide, nets, process, sampler, score
from jaxinf.run import Study, progress

TIMES = 20


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    spacing: float = 0.1
    """Time between two of a trajectory's points."""
    trajectories: int = 60_000
    tail: float = 0.02
    """Share of the system's trajectories in which the event happens, by which its bound is set."""
    noise: float = 0.03
    """By which the bound is blurred, in deviations of the coordinate: a network's derivative may
    leave no spread near the data, and then an exact bound rules out what is possible."""
    width: int = 256
    depth: int = 4
    steps: int = 6000
    """Training steps."""
    batch: int = 256
    learning_rate: float = 1e-3
    draws: int = 20_000
    """Of the model itself, of which few have the event."""
    particles: int = 2000
    sampler_steps: int = 60


@jax.jit
def trajectories(key: Any, spacing: Any, start: jax.Array) -> jax.Array:
    """Return [n, TIMES, 3] of Lorenz' system from where its attractor has been reached."""

    def field(_: Any, state: jax.Array) -> jax.Array:
        x, y, z = state
        return jnp.stack([10.0 * (y - x), x * (28.0 - z) - y, x * y - 8.0 / 3.0 * z])

    def one(state: jax.Array) -> jax.Array:
        state = core.runge_kutta(field, state, jnp.linspace(0.0, 20.0, 2001))

        def on(state: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
            state = core.runge_kutta(field, state, jnp.linspace(0.0, spacing, 11))
            return state, state

        return jax.lax.scan(on, state, None, TIMES)[1]

    return jax.vmap(one)(start + jax.random.normal(key, start.shape))


def excess(bound: jax.Array, x: jax.Array) -> jax.Array:
    """The mean of the first coordinate over the bound: above 0 it has stayed in one lobe."""
    return jnp.mean(x.reshape(TIMES, 3)[:, 0]) - bound


def train(key: Any, vp: Any, net: nets.Network, data: jax.Array, config: Config) -> Any:
    """Return the averaged parameters, a tenth of the steps at a time."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, config.learning_rate, config.steps // 20, config.steps
    )
    training = nets.training(
        score.denoising(vp, net.apply, target=score.v),
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate)),
    )

    def step(state: Any, key: Any) -> tuple[Any, None]:
        rows, noise = jax.random.split(key)
        batch = data[jax.random.randint(rows, (config.batch,), 0, len(data))]
        return training.step(noise, state, score.Batch(batch))[0], None

    run = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys)[0])
    starts, keys = jax.random.split(key)
    state = training.init(net.init(starts, data[0]))
    for i in progress(range(10), "training"):
        state = run(state, jax.random.split(jax.random.fold_in(keys, i), config.steps // 10))
    return state.average


def told(x: Any, weights: Any) -> dict[str, float]:
    """Weighted statistics of trajectories."""
    x = np.asarray(x, np.float64).reshape(-1, TIMES, 3)
    weights = np.asarray(weights, np.float64)
    value = {
        "mean of x": np.mean(x[..., 0], axis=1),
        "mean square of x": np.mean(np.square(x[..., 0]), axis=1),
        "largest |x|": np.abs(x[..., 0]).max(axis=1),
        "spread of z": x[..., 2].std(axis=1),
        "mean square of y - x": np.mean(np.square(x[..., 1] - x[..., 0]), axis=1),
        "crossings": np.sum(np.diff(np.sign(x[..., 0]), axis=1) != 0, axis=1),
    }
    return {name: float(weights @ v / weights.sum()) for name, v in value.items()}


def build(config: Config) -> Study:
    if not 0 < config.tail < 1 or config.tail * config.draws < 100:
        raise ValueError(
            f"the event must happen in 100 draws or more for rejection to tell anything: tail "
            f"{config.tail} of {config.draws} draws are fewer; pass more draws or a larger tail"
        )

    def run(key: Any) -> dict[str, Any]:
        keys = jax.random.split(key, 8)
        start = jnp.broadcast_to(jnp.array([1.0, 1.0, 25.0]), (config.trajectories, 3))
        raw = trajectories(keys[0], config.spacing, start)
        data = ((raw - raw.mean((0, 1))) / raw.std((0, 1))).reshape(-1, 3 * TIMES)
        vp = process.gaussian(process.cosine(t_max=0.995))
        net = nets.mlp(config.width, config.depth)
        model = score.denoiser(
            vp, net.apply, train(keys[1], vp, net, data, config), predicts=score.v
        )
        plan = sampler.karras(vp, config.sampler_steps, rho=3.0, end=vp.t_min)
        stepper, shape = sampler.ancestral(vp), (3 * TIMES,)

        def drawn(key: Any, denoiser: Any, n: int) -> Any:
            starts, noise = jax.random.split(key)
            x_T = vp.prior().sample(starts, (n, *shape))
            return sampler.sample(noise, stepper, denoiser, plan, x_T, block=2000).x

        bound = jnp.quantile(jax.vmap(lambda x: excess(jnp.float32(0), x))(data), 1 - config.tail)
        event = guide.interval(excess, 0.0, jnp.inf, params=bound, noise=config.noise)
        chance = jax.jit(jax.vmap(lambda x: jnp.exp(event.log_prob(x))))
        own = drawn(keys[2], model, config.draws)
        given = guide.conditioned(model, event, guide.mmps(1))
        plain = drawn(keys[3], given, config.particles)
        found = guide.particles(keys[4], stepper, given, plan, shape, particles=config.particles)
        x, weights = found.population.particles, jnp.exp(found.population.normalise())
        (of_data, of_own), some = map(chance, (data, own)), partial(jax.random.choice, keys[5])
        kept = own[some(len(own), (12,), p=of_own / of_own.sum())]
        return {
            "rows": {
                "system": told(data, of_data),
                "model, by rejection": told(own, of_own),
                "guided": told(plain, np.ones(len(plain))),
                "guided, weighted": told(x, weights),
            },
            "probability": {
                "system": of_data.mean(),
                "model, by rejection": of_own.mean(),
                "guided, weighted": jnp.exp(found.log_evidence),
            },
            "effective": {
                "model, by rejection": of_own.sum() ** 2 / jnp.sum(of_own**2),
                "guided, weighted": found.population.ess(),
            },
            "shown": {
                "any": own[:12], "by rejection": kept, "guided": plain[:12],
                "weighted": x[some(len(x), (12,), p=weights)],
            },
        }  # fmt: skip

    return Study(run=run, draw=draw, notes=notes)


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """The first coordinate of a few trajectories."""
    from matplotlib.figure import Figure

    shown = arrays["shown"]
    figure = Figure(figsize=(2.6 * len(shown), 2.6), layout="constrained")
    axes = figure.subplots(1, len(shown), sharex=True, sharey=True)
    for axis, (name, x) in zip(axes, shown.items(), strict=True):
        axis.plot(np.asarray(x).reshape(-1, TIMES, 3)[..., 0].T, lw=0.8)
        axis.set(title=name, xlabel="point")
    axes[0].set_ylabel("first coordinate")
    return {"trajectories": figure}


def notes(arrays: dict[str, Any]) -> str:
    """Statistics given the event, and its probability."""
    rows, chance = arrays["rows"], arrays["probability"]
    names = list(rows["system"])
    lines = [f"| | probability | {' | '.join(names)} |", "|---" * (2 + len(names)) + "|"]
    for name, row in rows.items():
        cell = f"{float(chance[name]):.4f}" if name in chance else ""
        lines.append(f"| {name} | {cell} | {' | '.join(f'{float(row[n]):.3f}' for n in names)} |")
    count = {name: float(n) for name, n in arrays["effective"].items()}
    lines += ["", ", ".join(f"{name}: {n:.0f} effective draws" for name, n in count.items()) + "."]
    return "\n".join(lines)
