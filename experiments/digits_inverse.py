"""Inverse problems on held-out digits and photograph patches, with the models trained here.

The lower half hidden, a blur, and means over 2x2 pixels, each with noise 0.1 (pixels lie in
[-1, 1]): samples given the observation by ``guide.conditioned`` with each method; azula's methods
of the same names on the same network and noise levels.
Command: ``jaxinf run experiments/digits_inverse.py [--patches_steps 1500]``; ``make bench
BENCH=digits_inverse`` installs azula.
Hardware: 1 CPU core that others shared, 10 minutes without training and azula.
Expected, one seed, 24 digits, 40 steps, standard errors in brackets: inpainting, deblurring,
super-resolution: PSNR of the mean of five draws 18.5, 20.5, 18.9 by mmps, as by azula's MMPS with
the same 3 iterations (differences in pairs 0.02 (0.20), 0.04 (0.17), 0.06 (0.17) dB), which is the
best of azula's; point has 20.8 and 19.8 in the last two and fails in the first. 90 % intervals of
mmps hold 0.88 (0.02) of the observed and 0.91 (0.01) of the hidden pixels, 0.91 and 0.89 (0.01) in
the others, and of digits that the model drew itself 0.88, 0.92, 0.91, 0.91; with 20 steps and rho 3
0.84 of the observed pixels, since short steps near the data are needed.
Six patches: 30.9, 33.7, 33.2 dB, azula's MMPS 31.3, 33.9, 33.1 (differences -0.4 (0.7), -0.2 (0.1),
0.2 (0.2)); intervals hold 0.89, 0.87 (hidden), 0.84, 0.86 (0.03 to 0.05), least where grain
that the model does not draw fills a dark patch.
Weighted particles are left out: 64 an image kept too few families for intervals.
"""

from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import digits_diffusion
import jax
import jax.numpy as jnp
import numpy as np
import patches_diffusion
from inverse_figures import draw, notes
from inverse_models import digits_model, trained

from jaxinf import data, guide, process, sampler, score
from jaxinf.run import Study, progress

NOISE, FEW, PEER_DRAWS = 0.1, 5, 15


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    steps: int = 1400
    """Training steps of the digits' model."""
    state: str = ""
    """Folder of its training state instead, ``runs/digits_diffusion/.../state`` with --drop 1."""
    patches_steps: int = 0
    """Training steps of the patches' model; 0 leaves it out unless there is a state of it."""
    patches_state: str = ""
    """Folder of its training state instead."""
    patches_channels: int = 24
    """Its width."""
    images: int = 24
    """Held-out digits."""
    patches: int = 6
    """Held-out patches."""
    draws: int = 19
    """Samples an image, 1 less than a multiple of 20: their ranks make 90 % intervals exactly."""
    sampler_steps: int = 40
    """Steps of every sampler, short ones near the data: a last jump to the mean from noise beside
    the posterior's width would make it too narrow."""
    rho: float = 4.0
    """The power by which the steps on digits shorten; on patches it is 7."""
    simulated: bool = True
    """Whether to ask also for digits that the model drew itself: what is off then is guidance."""
    peers: bool = True
    """Whether to run azula's methods, if it is installed."""


class Scene(NamedTuple):
    """A model and the images that it is asked for."""

    model: Any
    plan: sampler.Plan
    x: jax.Array
    methods: dict[str, Any]


class Problem(NamedTuple):
    """An operator with rows of zeros below, whose noise is infinite."""

    operator: guide.Operator
    noise: jax.Array
    size: int
    """How many numbers are observed."""
    seen: np.ndarray
    """The pixels that they are of."""


class Found(NamedTuple):
    """What a method made of a problem's images."""

    psnr: Any
    """Of each image's mean over all draws, in decibels of the range 2."""
    psnr_few: Any
    """Of the mean over five draws, on average over the groups of five that there are."""
    seen: Any
    """Share of each image's observed pixels that lie within their 90 % interval; not a number where
    draws are too few for one."""
    hidden: Any
    """The same of the others."""
    mean: Any
    deviation: Any
    samples: Any
    """Four of each of the first images."""


def methods(scale: float) -> dict[str, Any]:
    """Return the methods; ``scale`` is the data's standard deviation."""
    return {
        "mmps": guide.mmps(3),
        "tmpd": guide.tmpd(),
        "pigdm": guide.pigdm(scale, 8),
        "point": guide.point(),
    }


def scenes(config: Config) -> dict[str, Scene]:
    """Return digits and, where asked for, patches."""
    model, n = digits_model(config.steps, config.state), config.sampler_steps
    vp, test = model.process, data.digits().test
    x = data.dequantise(jax.random.key(2), test.x[: config.images], digits_diffusion.LEVELS)
    plan = sampler.karras(vp, n, config.rho)
    found = {"digits": Scene(model, plan, x, methods(0.75))}
    if config.patches_steps or config.patches_state:
        made = patches_diffusion.Config(
            steps=config.patches_steps or 1, channels=config.patches_channels
        )
        edm = process.gaussian(process.edm())
        params = trained(patches_diffusion, made, config.patches_state)
        target = score.preconditioned(made.data_scale)
        apply = patches_diffusion.network(made).apply
        tiles = data.tiles(data.photographs().test)
        chosen = tiles[:: len(tiles) // config.patches][: config.patches]
        x = data.dequantise(jax.random.key(3), chosen, patches_diffusion.LEVELS)
        model = score.denoiser(edm, apply, params, predicts=target)
        found["patches"] = Scene(model, sampler.karras(edm, n), x, methods(0.5))
    return found


def problems(shape: tuple[int, ...]) -> dict[str, Problem]:
    """Return the problems; as matrices of one size they share their programs."""
    upper = np.zeros(shape, bool)
    upper[: shape[0] // 2] = True
    operators = {
        "inpainting": guide.mask(upper),
        "deblurring": guide.blur(guide.gaussian_kernel(1.0, 5)),
        "super-resolution": guide.downsample(2),
    }
    found = {}
    for name, operator in operators.items():
        small = jax.jacobian(operator)(jnp.zeros(shape)).reshape(-1, upper.size)
        matrix = jnp.zeros((upper.size, upper.size)).at[: len(small)].set(small)
        noise = jnp.where(jnp.arange(upper.size) < len(small), NOISE, jnp.inf)
        seen = upper if name == "inpainting" else np.ones(shape, bool)
        found[name] = Problem(guide.projection(matrix), noise, len(small), seen)
    return found


@partial(jax.jit, static_argnames="draws")
def sample(
    key: Any, stepper: Any, scene: Scene, likelihoods: Any, method: Any, draws: int
) -> jax.Array:
    """Return draws for every image, [images, draws, ...]."""

    def one(key: Any, likelihood: Any, x: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        posterior = guide.conditioned(scene.model, likelihood, method)
        start = scene.model.process.prior().sample(keys[0], (draws, *x.shape))
        return sampler.sample(keys[1], stepper, posterior, scene.plan, start).x

    return jax.vmap(one)(jax.random.split(key, len(scene.x)), likelihoods, scene.x)


@jax.jit
def simulate(key: Any, scene: Scene, x: jax.Array) -> jax.Array:
    """Return images that the model draws itself, as many as there are."""
    keys = jax.random.split(key)
    start = scene.model.process.prior().sample(keys[0], x.shape)
    stepper = sampler.ancestral(scene.model.process)
    return sampler.sample(keys[1], stepper, scene.model, scene.plan, start).x


def psnr(mean: Any, x: Any) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each image, in decibels of the range 2."""
    error = np.mean(np.square(np.asarray(mean) - np.asarray(x)), axis=(1, 2, 3))
    return 10 * np.log10(4 / error)


def measure(draws: Any, x: Any, seen: np.ndarray) -> Found:
    """Return what draws [images, draws, ...] say of the images."""
    draws, x = np.asarray(draws), np.asarray(x)
    cut, groups = (draws.shape[1] + 1) // 20, draws.shape[1] // FEW
    ranked = np.sort(draws, axis=1)
    inside = np.where(cut, (ranked[:, cut - 1] < x) & (x < ranked[:, -cut]), np.nan)
    hidden = np.full(len(x), np.nan) if seen.all() else inside[:, ~seen].mean(axis=1)
    return Found(
        psnr(draws.mean(axis=1), x),
        np.mean([psnr(draws[:, i::groups][:, :FEW].mean(axis=1), x) for i in range(groups)], 0),
        inside[:, seen].mean(axis=1),
        hidden,
        draws.mean(axis=1),
        draws.std(axis=1, ddof=1),
        draws[:5, :4],
    )


def one(key: Any, scene: Scene, problem: Problem, config: Config, name: str) -> dict[str, Any]:
    """Run all methods on one problem."""
    operator, noise, size, seen = problem
    keys = jax.random.split(key, 4)
    stepper = sampler.ancestral(scene.model.process)

    def observe(x: jax.Array) -> Any:
        clean = jax.vmap(operator)(x)
        noisy = clean + NOISE * jax.random.normal(keys[0], clean.shape)
        y = jnp.where(jnp.isinf(noise)[None], 0.0, noisy)
        return jax.vmap(lambda y: guide.linear(operator, y, noise))(y)

    likelihoods = observe(scene.x)
    found: dict[str, Any] = {"truth": scene.x, "observed": likelihoods.y[:, :size]}
    for method, made in progress(list(scene.methods.items()), name):
        draws = sample(keys[1], stepper, scene, likelihoods, made, config.draws)
        found[method] = measure(draws, scene.x, seen)
    if config.simulated:
        drawn = scene._replace(x=simulate(keys[2], scene, scene.x))
        given = observe(drawn.x)
        draws = sample(keys[3], stepper, drawn, given, scene.methods["mmps"], config.draws)
        found["mmps, simulated"] = measure(draws, drawn.x, seen)
    if config.peers and find_spec("azula"):
        found |= others(scene, problem, found["observed"])
    return found


def others(scene: Scene, problem: Problem, y: Any) -> dict[str, Any]:
    """Run azula's methods, with draws too few for intervals."""
    from inverse_peers import peers

    shape = scene.x.shape[1:]
    matrix = np.asarray(problem.operator.params)[: problem.size]
    flat = np.repeat(np.asarray(y), PEER_DRAWS, axis=0)
    found = {}
    made = peers(scene.model, scene.plan, matrix, NOISE, shape)
    for name, run in progress(list(made.items()), "azula"):
        draws = run(0, flat).reshape(len(y), PEER_DRAWS, *shape)
        found[name] = measure(draws, scene.x, problem.seen)
    return found


def build(config: Config) -> Study:
    if config.draws < 19 or (config.draws + 1) % 20:
        raise ValueError(f"draws must be 19, 39, 59, ..., got {config.draws}.")

    def run(key: Any) -> dict[str, Any]:
        found = {}
        for place, (images, scene) in enumerate(scenes(config).items()):
            for i, (name, problem) in enumerate(problems(scene.x.shape[1:]).items()):
                title = f"{images}, {name}"
                found[title] = one(
                    jax.random.fold_in(key, 3 * place + i), scene, problem, config, title
                )
        return found

    return Study(run=run, draw=draw, notes=notes)
