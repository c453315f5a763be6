"""Samplers that are fitted to a target, and its log Z from below and from above.

Paper: F. Vargas, S. Padhy, D. Blessing and N. Nusken, "Transport meets variational inference:
controlled Monte Carlo diffusions" (2024), whose figures stand beside ours.

Commands: ``jaxinf run experiments/log_z_from_both_sides.py``, seven samplers in 4 minutes; with
``--steps 32 --methods controlled --iterations 600``, 40 seconds; with ``--steps 256 --methods
controlled --iterations 2000 --length 1``, 7 minutes. With ``--target sonar --data FOLDER --methods
controlled --length 0.16 --rate 0.01 --draws 100 --width 128 --iterations 3000``, 40 seconds, and
ionosphere, 70; ``--steps 256 --falling --length 1 --draws 50 --iterations 1000`` of these takes 7
minutes. The folder is that of ``log_evidence.py``.
Hardware: 2 CPU cores, which others used too.
Expected, one seed (lower bound, standard errors 0.002 to 0.02; in brackets the paper's): controlled
on the funnel with 8 steps -0.902 (-1.063), with 32 -0.591 (-0.681), with 256 -0.208 (-0.230); with
8 steps on sonar -111.78 (-112.27), on ionosphere -113.00 (-113.21), with 256 on sonar -109.1
(-109.25), on ionosphere -111.88 (-111.92). Others on the funnel with 8 steps: Langevin annealing
-1.514, Monte Carlo diffusion -1.275, momentum -1.261 and -1.079 with a control, denoising -1.062,
path integral -1.142; on sonar, with ``--falling --length 0.3 --iterations 1500``, Langevin
annealing -119.8 (-122.50), Monte Carlo diffusion -116.8 (-118.25), momentum -120.1 (-120.03), and
with a control and ``--fitted-start`` -112.8 (-113.08). Log Z by weights is -0.20 to -0.63 from
below, as few paths count, and within 0.01 of 0 from above; the upper bound itself is 1e3 to
infinite, as paths drawn back from the funnel's neck go astray.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from evidence_targets import CASES

from jaxinf import vi
from jaxinf.run import Study, progress


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    target: str = "funnel"
    """One of ``evidence_targets.py``."""
    data: Path | None = None
    """Folder with sonar.npz and ionosphere.npz, for these two."""
    methods: tuple[str, ...] = ()
    """Names of samplers; all by default."""
    steps: int = 8
    """Of a path."""
    iterations: int = 1500
    """Of the fit."""
    draws: int = 300
    """Paths an iteration."""
    rate: float = 0.02
    """Adam's at the start; it falls to zero as a cosine."""
    width: int = 64
    """Of the control's two hidden layers."""
    fitted_start: bool = False
    """Whether paths begin at a fitted mean field, instead of N(0, I)."""
    falling: bool = False
    """Whether steps shorten towards the target."""
    length: float = 0.3
    """Time of a whole path before the fit; of those with momentum six times as much."""
    evaluated: int = 50_000
    """Paths of the figures, each way."""


PUBLISHED = {
    ("funnel", 8): {
        "controlled": (-1.063, -0.304),
        "denoising": (None, -0.527),
        "path_integral": (None, -0.525),
    },
    ("funnel", 32): {
        "controlled": (-0.681, -0.181),
        "denoising": (None, -0.246),
        "path_integral": (None, -0.258),
    },
    ("funnel", 256): {
        "controlled": (-0.230, -0.019),
        "denoising": (None, -0.268),
        "path_integral": (None, -0.259),
    },
    ("sonar", 8): {
        "langevin_annealing": (-122.50, None),
        "monte_carlo_diffusion": (-118.25, None),
        "controlled": (-112.27, None),
        "momentum": (-120.03, None),
        "controlled_momentum": (-113.08, None),
    },
    ("sonar", 256): {
        "langevin_annealing": (-111.99, None),
        "monte_carlo_diffusion": (-110.06, None),
        "controlled": (-109.25, None),
        "momentum": (-109.74, None),
        "controlled_momentum": (-108.90, None),
    },
    ("ionosphere", 8): {
        "langevin_annealing": (-116.40, None),
        "monte_carlo_diffusion": (-114.95, None),
        "controlled": (-113.21, None),
        "controlled_momentum": (-112.79, None),
    },
    ("ionosphere", 256): {
        "langevin_annealing": (-112.71, None),
        "monte_carlo_diffusion": (-111.97, None),
        "controlled": (-111.92, None),
        "controlled_momentum": (-111.81, None),
    },
}
"""Lower bound and importance-weighted log Z, by target and steps."""

TIMES = 4
"""Pairs of waves by which the control knows the time."""
CHUNKS = 20
"""Parts of a fit, after each of which the bar moves."""


def control(network: vi.Perceptron, x: jax.Array, t: Any) -> jax.Array:
    """A network of place and time."""
    angles = jnp.pi * t * jnp.arange(1, TIMES + 1)
    return network(jnp.concatenate([x, jnp.sin(angles), jnp.cos(angles)]))


def longer(path: vi.Annealing) -> vi.Annealing:
    """Steps as momentum needs them."""
    return replace(path, log_step=path.log_step + jnp.log(6.0))


METHODS: dict[str, Callable[[vi.Annealing, vi.Perceptron], Any]] = {
    "langevin_annealing": lambda path, _: vi.langevin_annealing(path),
    "monte_carlo_diffusion": lambda path, net: vi.monte_carlo_diffusion(path, control, net),
    "controlled": lambda path, net: vi.controlled(path, control, net),
    "momentum": lambda path, _: vi.underdamped(longer(path), friction=5.0),
    "controlled_momentum": lambda path, net: vi.underdamped(
        longer(path), control, net, friction=5.0
    ),
    "denoising": lambda path, net: vi.denoising_sampler(path.mean.size, path.steps, control, net),
    "path_integral": lambda path, net: vi.path_integral_sampler(
        path.mean.size, path.steps, control, net
    ),
}


def build(config: Config) -> Study:
    """Return the study."""
    unknown = set(config.methods) - set(METHODS)
    if unknown or config.target not in CASES:
        raise ValueError(
            f"methods are {sorted(METHODS)} and targets {sorted(CASES)}, got {config.methods} and "
            f"{config.target!r}."
        )
    if config.iterations < CHUNKS:
        raise ValueError(f"iterations must be at least {CHUNKS}, got {config.iterations}.")

    def run(key: jax.Array) -> dict[str, Any]:
        return {"methods": {name: one(key, name, config) for name in config.methods or METHODS}}

    def report(arrays: dict[str, Any]) -> str:
        return notes(arrays["methods"], PUBLISHED.get((config.target, config.steps), {}))

    def figures(arrays: dict[str, Any]) -> dict[str, Any]:
        published = PUBLISHED.get((config.target, config.steps), {})
        return {"brackets": draw(arrays["methods"], published, CASES[config.target].truth)}

    return Study(run=run, draw=figures, notes=report)


def begin(key: jax.Array, name: str, posterior: Any, config: Config) -> Any:
    """A sampler before it is fitted."""
    length = config.length / config.steps
    mean, scale = 0.0, 1.0
    if config.fitted_start:
        falling = optax.adam(optax.cosine_decay_schedule(0.05, 3000))
        found = vi.approximate(
            key, posterior, vi.mean_field(posterior.dim), objective=vi.elbo(16, sticking=True),
            steps=3000, optimizer=falling,
        ).params  # fmt: skip
        mean, scale = found.mean, jnp.exp(found.log_scale)
    path = vi.annealing(
        posterior.dim, config.steps, mean=mean, scale=scale, step=length, falling=config.falling
    )
    inputs = posterior.dim * (2 if name == "controlled_momentum" else 1) + 2 * TIMES
    network = vi.perceptron(key, inputs, posterior.dim, width=config.width)
    return METHODS[name](path, network)


def optimizer(config: Config) -> optax.GradientTransformation:
    """Adam; down the funnel's neck a draw's gradient is of order e^-v."""
    schedule = optax.cosine_decay_schedule(config.rate, config.iterations)
    return optax.chain(optax.clip_by_global_norm(5.0), optax.adam(schedule))


def one(key: jax.Array, name: str, config: Config) -> dict[str, Any]:
    """Fit a sampler, and bracket log Z with it."""
    case = CASES[config.target]
    posterior = case.make(config.data)
    key_start, key_fit, key_exact, key_found = jax.random.split(key, 4)
    kernels, descent = begin(key_start, name, posterior, config), optimizer(config)
    state, bounds, start = descent.init(kernels), [], time.perf_counter()
    for i in progress(CHUNKS, name):
        found = vi.approximate(
            jax.random.fold_in(key_fit, i), posterior, kernels, objective=vi.elbo(config.draws),
            steps=config.iterations // CHUNKS, optimizer=descent, opt_state=state,
        )  # fmt: skip
        kernels, state = found.params, found.opt_state
        bounds.append(float(jnp.mean(found.info.bound)))
    seconds = time.perf_counter() - start
    exact = None
    if case.sample is not None:
        exact = jax.vmap(case.sample)(jax.random.split(key_exact, config.evaluated))
    measures = vi.path_measures(posterior, kernels)
    found = vi.evidence(key_found, measures, config.evaluated, exact=exact)
    kept = {k: np.asarray(np.nan if v is None else v) for k, v in found._asdict().items()}
    del kept["values"], kept["log_weights"]
    print(name, *(f"{k} {kept[k]:.4g}" for k in ("elbo", "log_z", "reverse_log_z")), flush=True)
    return {**kept, "seconds": np.array(seconds), "bounds": np.array(bounds)}


def draw(methods: dict[str, Any], published: dict[str, Any], truth: float) -> Any:
    """Brackets of log Z, and the lower bound as it was fitted."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 0.45 * len(methods) + 2.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 2))
    names = [name for name in METHODS if name in methods]
    low = min(float(methods[name]["elbo"]) for name in names)
    edge = truth + 0.3 * (truth - low)
    for place, name in enumerate(names):
        row, colour = methods[name], f"C{place}"
        bound, weighed, above = (float(row[k]) for k in ("elbo", "log_z", "reverse_log_z"))
        left.plot([bound, weighed], [place, place], "o-", color=colour, lw=1, markevery=[0])
        if np.isnan(above):
            left.plot(weighed, place, "|", color=colour, ms=14, mew=3)
        else:
            left.plot([weighed, above], [place, place], color=colour, lw=7, solid_capstyle="butt")
            left.annotate(
                f"{float(row['eubo']):.1e}", (above, place), (edge, place),
                arrowprops={"arrowstyle": "<-", "color": colour}, va="center", fontsize=8,
            )  # fmt: skip
        for value, mark in zip(published.get(name, (None, None)), "Ds", strict=True):
            if value is not None:
                left.plot(value, place + 0.3, mark, color="k", mfc="none", ms=5)
        shares = np.linspace(0, 1, len(row["bounds"]) + 1)[1:]
        right.plot(shares, row["bounds"], color=colour)
    left.axvline(truth, color="k", lw=0.8)
    left.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    left.set_xlim(None, truth + 0.55 * (truth - low))
    left.set_ylim(len(names) - 0.4, -0.6)
    left.set_xlabel(
        "nats: lower bound (dot), log Z by weights both ways (thick), upper bound (figure);\n"
        "published lower bound (diamond) and log Z (square)"
    )
    right.set(xlabel="share of the iterations", ylabel="evidence lower bound")
    ends = [bound for row in methods.values() for bound in row["bounds"][CHUNKS // 10 :]]
    margin = 0.1 * (max(ends) - min(ends))
    right.set_ylim(min(ends) - margin, max(ends) + margin)
    return figure


def notes(methods: dict[str, Any], published: dict[str, Any]) -> str:
    """A line a sampler."""
    head = ["sampler", "ELBO", "published", "log Z by weights", "published", "effective",
            "log Z from above", "EUBO", "seconds"]  # fmt: skip
    lines = [" | ".join(head), " | ".join(["---"] * len(head))]
    for name in (name for name in METHODS if name in methods):
        row = methods[name]
        bound, weighed = ("" if v is None else f"{v:.3f}" for v in published.get(name, (None,) * 2))
        figures = [
            name.replace("_", " "), f"{row['elbo']:.3f} ({row['elbo_error']:.3f})", bound,
            f"{row['log_z']:.3f} ({row['log_z_error']:.3f})", weighed, f"{row['ess']:.4f}",
            f"{row['reverse_log_z']:.3f}", f"{row['eubo']:.3g}", f"{row['seconds']:.0f}",
        ]  # fmt: skip
        lines.append(" | ".join(figures))
    return "\n".join(f"| {line} |" for line in lines)
