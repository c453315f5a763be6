"""Inverse problems on held-out digits and photograph patches, with the models trained here.

The lower half hidden, a blur, and means over 2x2 pixels, each with noise 0.1 (pixels lie in
[-1, 1]): samples given the observation by ``guide.conditioned`` with each method, and by
``guide.particles`` with weights; azula's methods of the same names on the same network.
Command: ``jaxinf run experiments/digits_inverse.py [--patches_steps 1500]``; ``make bench
BENCH=digits_inverse`` installs azula.
Hardware: 2 CPU cores; 44 minutes on cores that ten others shared, without training.
Expected, one seed, 32 digits, 20 steps, standard errors 0.3 to 0.6 dB and 0.01 to 0.02: PSNR of the
mean of five draws, inpainting, deblurring, super-resolution: best of ours 18.2 (pigdm), 20.5
(point), 20.0 (point); best of azula's (MMPS, 3 iterations of GMRES) 18.6, 20.6, 19.1; mmps with 3
of conjugate gradients 17.3, 20.4, 19.4: some of its draws fail, as on patches (19 dB beside 31 of
pigdm with the half hidden, six patches).
90 % intervals are too narrow: mmps covers 0.78 of observed and 0.84 of hidden pixels, 0.77 and 0.80
of all when deblurring and in super-resolution, and 0.73, 0.85, 0.79, 0.83 for digits that the model
drew itself: so it is guidance and the chain's 20 equal steps, whose last jumps from noise 0.08 to
the mean, and not the model. 64 weighted particles, ten digits, hold too few families: 0.23 to 0.62.
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

NOISE, PEER_DRAWS = 0.1, 5


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
    images: int = 32
    """Held-out digits."""
    patches: int = 6
    """Held-out patches."""
    draws: int = 19
    """Samples an image, 1 less than a multiple of 20: their ranks make 90 % intervals exactly."""
    sampler_steps: int = 20
    """Steps of every sampler."""
    particles: int = 64
    """An image, where samples are weighted."""
    weighted: int = 10
    """Held-out digits whose samples are weighted; 0 leaves that out."""
    simulated: bool = True
    """Whether to ask also for digits that the model drew itself: what is off then is guidance."""
    peers: bool = True
    """Whether to run azula's methods, if it is installed."""


class Scene(NamedTuple):
    """A model and the images that it is asked for."""

    model: Any
    plan: sampler.Plan
    to_noise: sampler.Plan
    """The plan that ends above time 0, for weights."""
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
    """Of the mean over five draws."""
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
        "mmps": guide.mmps(3, solve=guide.ConjugateGradients),
        "tmpd": guide.tmpd(),
        "pigdm": guide.pigdm(scale, 8),
        "point": guide.point(),
    }


def scenes(config: Config) -> dict[str, Scene]:
    """Return digits and, where asked for, patches."""
    model, n = digits_model(config.steps, config.state), config.sampler_steps
    vp, test = model.process, data.digits().test
    x = data.dequantise(jax.random.key(2), test.x[: config.images], digits_diffusion.LEVELS)
    plans = sampler.uniform(vp, n), sampler.uniform(vp, n, end=0.02)
    found = {"digits": Scene(model, *plans, x, methods(0.75))}
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
        plans = sampler.karras(edm, n), sampler.karras(edm, n, end=edm.t_min)
        model = score.denoiser(edm, apply, params, predicts=target)
        found["patches"] = Scene(model, *plans, x, methods(0.5))
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


@partial(jax.jit, static_argnames=("draws", "particles"))
def weigh(
    key: Any, stepper: Any, scene: Scene, likelihoods: Any, method: Any, draws: int, particles: int
) -> jax.Array:
    """Return draws by their weights, for every image."""

    def one(key: Any, likelihood: Any, x: jax.Array) -> jax.Array:
        keys = jax.random.split(key)
        posterior = guide.conditioned(scene.model, likelihood, method)
        run = guide.particles(
            keys[0], stepper, posterior, scene.to_noise, x.shape, particles=particles
        )
        weights = jnp.exp(run.population.normalise())
        return run.population.particles[jax.random.choice(keys[1], particles, (draws,), p=weights)]

    return jax.vmap(one)(jax.random.split(key, len(scene.x)), likelihoods, scene.x)


@jax.jit
def simulate(key: Any, scene: Scene, x: jax.Array) -> jax.Array:
    """Return images that the model draws itself, as many as there are."""
    keys = jax.random.split(key)
    start = scene.model.process.prior().sample(keys[0], x.shape)
    stepper = sampler.ancestral(scene.model.process)
    return sampler.sample(keys[1], stepper, scene.model, scene.to_noise, start).x


def psnr(mean: Any, x: Any) -> np.ndarray:
    """Return the peak signal-to-noise ratio of each image, in decibels of the range 2."""
    error = np.mean(np.square(np.asarray(mean) - np.asarray(x)), axis=(1, 2, 3))
    return 10 * np.log10(4 / error)


def measure(draws: Any, x: Any, seen: np.ndarray) -> Found:
    """Return what draws [images, draws, ...] say of the images."""
    draws, x = np.asarray(draws), np.asarray(x)
    cut = (draws.shape[1] + 1) // 20
    ranked = np.sort(draws, axis=1)
    inside = np.where(cut, (ranked[:, cut - 1] < x) & (x < ranked[:, -cut]), np.nan)
    hidden = np.full(len(x), np.nan) if seen.all() else inside[:, ~seen].mean(axis=1)
    return Found(
        psnr(draws.mean(axis=1), x),
        psnr(draws[:, :PEER_DRAWS].mean(axis=1), x),
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
    jobs: list[tuple[str, Any, Any]] = [(n, m, stepper) for n, m in scene.methods.items()]
    jobs.append(("mmps, ddim", scene.methods["mmps"], sampler.ddim(scene.model.process)))
    for method, made, by in progress(jobs, name):
        draws = sample(keys[1], by, scene, likelihoods, made, config.draws)
        found[method] = measure(draws, scene.x, seen)
    if name.startswith("patches"):
        return found
    cases = [("", scene, likelihoods)]
    if config.simulated:
        drawn = scene._replace(x=simulate(keys[2], scene, scene.x))
        cases.append((", simulated", drawn, observe(drawn.x)))
        draws = sample(keys[3], stepper, *cases[1][1:], scene.methods["mmps"], config.draws)
        found["mmps, simulated"] = measure(draws, drawn.x, seen)
    for suffix, case, given in cases if config.weighted else []:
        few = case._replace(x=case.x[: config.weighted])
        given = jax.tree.map(lambda a: a[: config.weighted], given)
        draws = weigh(
            keys[1], stepper, few, given, scene.methods["mmps"], config.draws, config.particles
        )
        found[f"mmps, weighted{suffix}"] = measure(draws, few.x, seen)
    if config.peers and find_spec("azula"):
        found |= others(scene, problem, found["observed"], config)
    return found


def others(scene: Scene, problem: Problem, y: Any, config: Config) -> dict[str, Any]:
    """Run azula's methods, five draws an image: too few for intervals."""
    from inverse_peers import peers

    shape = scene.x.shape[1:]
    matrix = np.asarray(problem.operator.params)[: problem.size]
    flat = np.repeat(np.asarray(y), PEER_DRAWS, axis=0)
    found = {}
    made = peers(scene.model, matrix, NOISE, config.sampler_steps, float(scene.plan.times[0]))
    for name, run in progress(list(made.items()), "azula"):
        draws = run(0, flat, shape).reshape(len(y), PEER_DRAWS, *shape)
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
