"""What the driver costs: against a scan written by hand, and against diffrax.

Command: ``make bench`` (installs diffrax beside the library first), or
``jaxinf run experiments/driver_overhead.py`` without it.
Hardware: any; the figures are ratios within one run, medians over interleaved repetitions.
Expected: the driver, which watches all samples for numbers that are not finite, 1.1 times the scan,
which does not; its first call 0.4 to 0.7 s longer than its second whatever the number of steps;
diffrax tuned about 6 times the scan; with a network, steppers 0.95 to 1.06 times its calls.
"""

import importlib.util
import time
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxinf import core, nets, process, sampler, score
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    batch: int = 256
    """Chains."""
    dimension: int = 8
    """Numbers in an example."""
    steps: int = 1000
    """Euler-Maruyama steps."""
    repetitions: int = 15
    """Timed calls of each, interleaved."""


class Timing(NamedTuple):
    """Seconds."""

    first_call: float
    second_call: float
    median: float
    ratio: float
    """Median over the repetitions of the time over the first contender's."""


def build(config: Config) -> Study:
    vp = process.gaussian(process.linear_beta())
    law = core.gaussian(jnp.linspace(-1, 1, config.dimension), core.Diagonal(0.5))
    denoiser, stepper = score.oracle(vp, law), sampler.euler_maruyama(vp)
    plan = sampler.uniform(vp, config.steps, end=vp.t_min)

    def run(key):
        key_start, key_run = jax.random.split(key)
        start = vp.prior().sample(key_start, (config.batch, config.dimension))
        steps = [10, 100, 1000, 10_000]
        compiles = []
        for count in progress(steps, "compile time against steps"):
            other = sampler.uniform(vp, count, end=vp.t_min)
            call = partial(sampler.sample, key_run, stepper, denoiser, other, start[:2])
            compiles.append(clock(call) - clock(call))
        contenders = {
            "scan by hand": partial(by_hand, key_run, denoiser, plan.times, start),
            "driver": lambda: sampler.sample(key_run, stepper, denoiser, plan, start).x,
        }
        if importlib.util.find_spec("diffrax"):
            import diffrax  # noqa: F401, now: importing it makes JAX compile anew what it had

            contenders["diffrax as in its examples"] = partial(
                with_diffrax, key_run, denoiser, start, config.steps, False
            )
            contenders["diffrax tuned"] = partial(
                with_diffrax, key_run, denoiser, start, config.steps, True
            )
        results = compare(contenders, config.repetitions)
        results |= {
            f"network: {name}": timing
            for name, timing in compare(with_network(key), config.repetitions).items()
        }
        results["compile time"] = {"steps": np.array(steps), "seconds": np.array(compiles)}
        return results

    return Study(run=run, draw=draw, notes=notes)


def with_network(key: Any, calls: int = 120) -> dict[str, Any]:
    """Steppers of as many calls of a network each, and the calls alone first."""
    vp, net = process.gaussian(process.cosine(t_max=0.99)), nets.mlp(width=512, depth=3)
    x = vp.prior().sample(key, (64, 256))
    model = score.denoiser(vp, net.apply, net.init(key, x[0]), predicts=score.v)

    @jax.jit
    def alone(model, x):
        def call(x, t):
            return jax.vmap(lambda x: model(x, t))(x), None

        return jax.lax.scan(call, x, jnp.linspace(0.99, 0.01, calls))[0]

    steppers = {
        "DDIM": sampler.ddim(vp),
        "ancestral": sampler.ancestral(vp),
        "Heun": sampler.heun(vp),
        "RK4": sampler.rk4(vp),
        "UniPC-3": sampler.unipc(vp),
        "exponential, 2, with noise": sampler.exponential(vp, 2, eta=1.0),
    }
    walks = {}
    for name, stepper in steppers.items():
        plan = sampler.uniform(vp, calls // stepper.calls(1.0, 0.5), end=vp.t_min)
        walks[name] = partial(sampler.sample, key, stepper, model, plan, x)
    return {"calls alone": partial(alone, model, x)} | walks


@jax.jit
def by_hand(key, denoiser, times, x):
    """The driver's arithmetic for Euler-Maruyama as a user would write it: the same noise too."""
    p, key = denoiser.process, jax.random.fold_in(key, 0)
    times = jnp.asarray(times, x.dtype)

    def step(x, slot):
        i, t, s = slot
        z = jax.vmap(lambda n: core.Independent(key, i, n, x.shape[1:], x.dtype).increment(t, s))(
            jnp.arange(x.shape[0])
        )
        eps = (x - p.alpha(t) * jax.vmap(lambda x: denoiser(x, t))(x)) / p.sigma(t)
        g2 = p.dispersion_squared(t)
        drift = p.drift(t) * x + g2 / p.sigma(t) * eps
        return x + (s - t) * drift + jnp.sqrt(g2 * (t - s)) * z, None

    return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))[0]


@partial(jax.jit, static_argnames=("steps", "tuned"))
def with_diffrax(key, denoiser, x, steps, tuned):
    """The same equation by diffrax's Euler, with its default or its fastest Brownian motion."""
    import diffrax

    p = denoiser.process
    first, last = p.t_max, p.t_min

    def drift(t, x, args):
        t = first - t
        eps = (x - p.alpha(t) * denoiser(x, t)) / p.sigma(t)
        return -(p.drift(t) * x + p.dispersion_squared(t) / p.sigma(t) * eps)

    def diffusion(t, x, args):
        return jnp.sqrt(p.dispersion_squared(first - t)) * jnp.ones_like(x)

    step = (first - last) / steps

    def one(key, x):
        shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        if tuned:
            motion = diffrax.UnsafeBrownianPath(shape, key)
        else:
            motion = diffrax.VirtualBrownianTree(0.0, first - last, step / 2, shape, key)
        terms = diffrax.MultiTerm(
            diffrax.ODETerm(drift), diffrax.WeaklyDiagonalControlTerm(diffusion, motion)
        )
        adjoint = diffrax.ForwardMode() if tuned else diffrax.RecursiveCheckpointAdjoint()
        return diffrax.diffeqsolve(
            terms, diffrax.Euler(), 0.0, first - last, step, x, adjoint=adjoint, max_steps=steps + 2
        ).ys[-1]

    return jax.vmap(one)(jax.random.split(key, x.shape[0]), x)


def clock(call) -> float:
    start = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - start


def compare(contenders: dict[str, Any], repetitions: int) -> dict[str, Any]:
    """Time each contender in turn, so that the machine's drift falls on all alike."""
    first = {name: clock(call) for name, call in contenders.items()}
    second = {name: clock(call) for name, call in contenders.items()}
    times = {name: [] for name in contenders}
    for _ in progress(repetitions, "interleaved repetitions"):
        for name, call in contenders.items():
            times[name].append(clock(call))
    base = np.array(next(iter(times.values())))
    return {
        name: Timing(
            first[name],
            second[name],
            float(np.median(values)),
            float(np.median(np.array(values) / base)),
        )
        for name, values in times.items()
    }


def notes(arrays: dict[str, Any]) -> str:
    rows = [
        "| contender | first call (s) | second call (s) | median (s) | time over the first one's |",
        "|-|-|-|-|-|",
    ]
    for name, timing in arrays.items():
        if name != "compile time":
            rows.append(
                f"| {name} | {timing.first_call:.3f} | {timing.second_call:.3f} "
                f"| {timing.median:.3f} | {timing.ratio:.2f} |"
            )
    compiles = arrays["compile time"]
    pairs = zip(compiles["steps"], compiles["seconds"], strict=True)
    listed = ", ".join(f"{seconds:.2f} s for {steps}" for steps, seconds in pairs)
    return "\n".join([*rows, "", f"Compile time against steps: {listed}."])


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Compile time against the number of steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3), layout="constrained")
    axis = figure.subplots()
    axis.semilogx(arrays["compile time"]["steps"], arrays["compile time"]["seconds"], "o-")
    axis.set(xlabel="steps", ylabel="compile time (s)", ylim=(0, None))
    return {"compile_time": figure}
