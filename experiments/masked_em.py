"""A diffusion model of digits from images of which half the pixels are hidden, by EM.

Paper: F. Rozet et al., "Learning Diffusion Priors from Observations by Expectation Maximization"
(2024): a Gaussian fitted to the observations in closed form comes first, then rounds of posterior
draws by moment matching (MMPS; solved by GMRES) and of refitting the network to them.
Data: scikit-learn's digits, y = m (x + n) with masks m of independent pixels and n ~ N(0, noise^2).
The clean model takes as many steps. Distances: sliced Wasserstein to test digits over train's.
Command: ``jaxinf run experiments/masked_em.py``; 13 minutes of one CPU core.
Expected, one seed, distance ratio over the clean model's 1.06: the Gaussian 2.32, trained on its
posterior draws alone 1.91, after rounds 1 to 7 of EM 1.67, 1.55, 1.40, 1.49, 1.45, 1.42, 1.44.
Posterior draws by 20 steps fall short of a pixel's standard deviation by 0.003, ancestral by 0.017.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinf import core, data, diagnostics, guide, markov, nets, process, sampler, score
from jaxinf.run import Study

LEVELS, SHAPE = 17, (8, 8, 1)
PIXELS = 64


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    hidden: float = 0.5
    """Share of the pixels that is hidden."""
    noise: float = 0.05
    """Standard deviation of the observations' noise; pixels lie in [-1, 1]."""
    gaussian_rounds: int = 30
    """Rounds of EM for the Gaussian."""
    first: int = 750
    """Training steps on the Gaussian's posterior draws."""
    rounds: int = 7
    """Rounds of EM for the network."""
    steps: int = 250
    """Training steps a round."""
    batch: int = 64
    """Images a step."""
    channels: int = 32
    """Width of the U-Net."""
    learning_rate: float = 1e-3
    """Adam's rate at its highest in each round, after a warm-up and before a cosine decay."""
    posterior_steps: int = 16
    """Sampler steps of a posterior draw."""
    iterations: int = 2
    """Of generalised minimal residuals in each."""
    start: float = 0.97
    """Time at which samplers begin, a little before the last, at which the data's scale is 0."""
    samples: int = 1000
    """Images drawn from each round's model."""
    sampler_steps: int = 30
    """Sampler steps of those."""


@core.record
class Moments:
    """The E step in closed form: the moments of x given y = m x + n under a Gaussian."""

    noise: core.Leaf

    def __call__(self, key: Any, law: core.Gaussian, seen: Any) -> tuple[jax.Array, jax.Array]:
        laws = jax.vmap(partial(observe, law, self.noise))(*seen)
        return laws.mean, laws.covariance.matrix


def observe(law: core.Gaussian, noise: Any, y: jax.Array, mask: jax.Array) -> core.Gaussian:
    kernel = markov.linear_gaussian(jnp.diag(mask.ravel()), core.Diagonal(noise))
    return kernel.observe(law, y.ravel())[0]


def fit_gaussian(key: Any, law: core.Gaussian, moments: Any) -> core.Gaussian:
    """The M step in closed form."""
    means, covariances = moments
    mean = jnp.mean(means, axis=0)
    covariance = jnp.cov(means.T, ddof=0) + jnp.mean(covariances, axis=0)
    return core.Gaussian(mean, core.Full((covariance + covariance.T) / 2))


def gaussian_draws(key: Any, law: core.Gaussian, noise: float, seen: Any) -> jax.Array:
    def one(key: Any, y: jax.Array, mask: jax.Array) -> jax.Array:
        found = observe(law, noise, y, mask)
        root = core.dense(found.covariance.matrix + 1e-5 * jnp.eye(PIXELS))
        return core.Gaussian(found.mean, root).sample(key)

    x = jax.vmap(one)(jax.random.split(key, len(seen[0])), *seen)
    return x.reshape(-1, *SHAPE)


@core.record
class Posterior:
    """The denoiser of x given its own y and mask, as the condition of a call."""

    denoiser: core.Leaf
    operator: core.Leaf
    noise: core.Leaf
    iterations: int = core.static()

    @property
    def process(self) -> Any:
        return self.denoiser.process

    def __call__(self, x: jax.Array, t: Any, cond: Any) -> jax.Array:
        y, mask = cond
        seen = guide.linear(self.operator, y, jnp.where(mask > 0, self.noise, jnp.inf))
        return guide.conditioned(self.denoiser, seen, guide.mmps(self.iterations))(x, t)


def identity(_: Any, x: jax.Array) -> jax.Array:
    return x


class Model:
    """Training, posterior draws and generation of the network."""

    def __init__(self, config: Config):
        self.config, self.vp = config, process.gaussian(process.cosine())
        self.net = nets.unet(channels=config.channels)
        self.loss = score.denoising(self.vp, self.net.apply, target=score.v)
        self.operator = guide.operator(identity, (), SHAPE)

    def training(self, steps: int) -> nets.Training:
        rate = optax.warmup_cosine_decay_schedule(
            0.0, self.config.learning_rate, min(50, steps // 2), steps
        )
        return nets.training(
            self.loss, optax.chain(optax.clip_by_global_norm(1.0), optax.adam(rate))
        )

    def refit(self, key: Any, params: Any, x: jax.Array, steps: int, dequantise: bool = False):
        """Return the parameters' average after training steps on images."""
        training = self.training(steps)

        def step(state: Any, key: Any) -> tuple[Any, jax.Array]:
            rows, noise, loss = jax.random.split(key, 3)
            batch = x[jax.random.randint(rows, (self.config.batch,), 0, len(x))]
            if dequantise:
                batch = data.dequantise(noise, batch, LEVELS)
            state, metrics = training.step(loss, state, score.Batch(batch))
            return state, metrics["loss"]

        state, _ = jax.lax.scan(step, training.init(params), jax.random.split(key, steps))
        return state.average

    def denoiser(self, params: Any) -> score.Network:
        return score.denoiser(self.vp, self.net.apply, params, predicts=score.v)

    def posterior(self, key: Any, params: Any, seen: Any) -> jax.Array:
        """Return a draw of each observation's posterior."""
        config = self.config
        model = Posterior(self.denoiser(params), self.operator, config.noise, config.iterations)
        return self.draw(key, model, seen[0].shape, config.posterior_steps, seen)

    def generate(self, key: Any, params: Any) -> jax.Array:
        """Return images, on the middle of their levels."""
        config = self.config
        shape = (config.samples, *SHAPE)
        x = self.draw(key, self.denoiser(params), shape, config.sampler_steps)
        return data.midpoints(data.quantise(x, LEVELS), LEVELS)

    def draw(self, key: Any, model: Any, shape: Any, steps: int, cond: Any = None) -> jax.Array:
        """Sample by SDE-DPM-Solver++, whose draws spread as they should in few steps."""
        starts, draws = jax.random.split(key)
        plan = sampler.plan(self.vp, self.config.start * np.linspace(1, 0, steps + 1) ** 1.5)
        x_T, stepper = self.vp.prior().sample(starts, shape), sampler.dpm_solver(self.vp, 2, 1.0)
        return sampler.sample(draws, stepper, model, plan, x_T, cond, block=250).x


def build(config: Config) -> Study:
    digits, model = data.digits(), Model(config)
    train, test = (data.midpoints(part.x, LEVELS) for part in (digits.train, digits.test))

    def ratio(key: Any, images: jax.Array) -> jax.Array:
        """Distance of images to the test set, over that of the clean training set."""
        distance = partial(diagnostics.sliced_wasserstein, key)
        return distance(images, test) / distance(train, test)

    def judged(key: Any, params: Any, x: jax.Array) -> dict[str, jax.Array]:
        draws, directions = jax.random.split(key)
        images = model.generate(draws, params)
        error = jnp.sqrt(jnp.mean(jnp.square(x - train)))
        return {"ratio": ratio(directions, images), "error": error, "images": images[:100]}

    def run(key: Any) -> dict[str, Any]:
        keys = jax.random.split(key, 10)
        mask = jax.random.bernoulli(keys[0], 1 - config.hidden, train.shape).astype(jnp.float32)
        y = mask * (train + config.noise * jax.random.normal(keys[1], train.shape))
        seen = y, mask
        law = core.Gaussian(jnp.zeros(PIXELS), core.Full(jnp.eye(PIXELS)))
        law = guide.expectation_maximisation(
            keys[2], Moments(config.noise), fit_gaussian, law, seen, rounds=config.gaussian_rounds
        ).params
        x = jax.jit(gaussian_draws)(keys[3], law, config.noise, seen)
        say("Gaussian fitted")
        params = model.net.init(keys[4], jnp.zeros(SHAPE))
        fit = jax.jit(model.refit, static_argnames=("steps", "dequantise"))
        judge = jax.jit(judged)
        clean = fit(keys[5], params, jnp.asarray(digits.train.x), total(config), dequantise=True)
        found: dict[str, Any] = {"clean": judge(keys[6], clean, train)}
        say(f"clean images: {float(found['clean']['ratio']):.3f}")
        params = fit(keys[7], params, x, config.first)
        first = judge(keys[6], params, x)
        say(f"Gaussian's posterior draws: {float(first['ratio']):.3f}")
        later = guide.expectation_maximisation(
            keys[8], model.posterior, partial(model.refit, steps=config.steps), params, seen,
            rounds=config.rounds, record=judged, progress=True,
        )  # fmt: skip
        rounds = jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, later.info.record)
        last = jax.jit(model.posterior)(keys[9], later.params, jax.tree.map(lambda a: a[:20], seen))
        normal = jax.vmap(core.Gaussian(law.mean, law.covariance.rooted).sample)
        plain = normal(jax.random.split(keys[6], config.samples)).reshape(-1, *SHAPE)
        plain = data.midpoints(data.quantise(plain, LEVELS), LEVELS)
        found["gaussian"] = {"ratio": ratio(keys[6], plain), "images": plain[:100]}
        found["rounds"] = rounds
        found["observed"] = {"digits": train[:20], "y": y[:20], "mask": mask[:20],
                             "first": x[:20], "last": last}  # fmt: skip
        return found

    return Study(run=run, draw=draw, notes=notes)


def total(config: Config) -> int:
    """Training steps of either model."""
    return config.first + config.rounds * config.steps


def say(words: str) -> None:
    print(words, flush=True)


def tiled(images: np.ndarray, columns: int) -> np.ndarray:
    """Return images side by side, in rows, with white between."""
    grid = np.asarray(images).reshape(-1, columns, 8, 8)
    grid = np.pad(grid, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1)
    return np.concatenate(np.concatenate(grid, axis=1), axis=1)


def show(axis: Any, images: np.ndarray, columns: int, title: str) -> None:
    axis.imshow(tiled(images, columns), cmap="gray_r", vmin=-1, vmax=1)
    axis.set_title(title, fontsize=9)
    axis.axis("off")


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Observations and their posterior draws, generated digits by round, and the distances."""
    from matplotlib.figure import Figure

    seen, rounds, clean = arrays["observed"], arrays["rounds"], arrays["clean"]
    posterior = Figure(figsize=(9, 3.0), layout="constrained")
    panels = {
        "digits": seen["digits"],
        "observed, hidden pixels grey": np.where(seen["mask"] > 0, seen["y"], 0.0),
        "posterior draws under the Gaussian": seen["first"],
        "posterior draws under the last model": seen["last"],
    }
    for axis, (title, images) in zip(posterior.subplots(4, 1), panels.items(), strict=True):
        show(axis, images, 20, title)
    last = len(rounds["ratio"]) - 1
    shown = {
        "Gaussian": arrays["gaussian"]["images"],
        "round 0": rounds["images"][0],
        **{f"round {k}": rounds["images"][k] for k in sorted({1, (last + 1) // 2, last} - {0})},
        "trained on clean digits": clean["images"],
    }
    generated = Figure(figsize=(2.4 * len(shown), 2.8), layout="constrained")
    for axis, (title, images) in zip(generated.subplots(1, len(shown)), shown.items(), strict=True):
        show(axis, images, 10, title)
    distances = Figure(figsize=(5, 3), layout="constrained")
    axis = distances.subplots()
    axis.plot(np.arange(last + 1), rounds["ratio"], "o-", label="from masked digits")
    axis.axhline(float(clean["ratio"]), color="C1", label="from clean digits")
    axis.axhline(1.5 * float(clean["ratio"]), color="C1", ls=":", label="1.5 times that")
    axis.set(
        xlabel="round",
        ylabel="distance to test digits / train's",
        ylim=(0, None),
        xticks=range(last + 1),
    )
    axis.legend()
    return {"posterior": posterior, "generated": generated, "distances": distances}


def notes(arrays: dict[str, Any]) -> str:
    """The distances as a table."""
    rounds, clean = arrays["rounds"], float(arrays["clean"]["ratio"])
    lines = ["| model | distance ratio | over the clean model's | error of draws |", "|-|-|-|-|"]
    rows = {"clean digits": (clean, 0.0), "Gaussian": (float(arrays["gaussian"]["ratio"]), np.nan)}
    for k, pair in enumerate(zip(rounds["ratio"], rounds["error"], strict=True)):
        rows[f"round {k}"] = pair
    for name, (value, error) in rows.items():
        lines.append(f"| {name} | {value:.3f} | {value / clean:.3f} | {error:.3f} |")
    return "\n".join(lines)
