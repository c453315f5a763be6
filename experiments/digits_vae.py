"""Autoencoders with a Gaussian posterior on scikit-learn's digits, binarised.

Papers: D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), by default, with the
divergence in closed form; Y. Burda, R. Grosse and R. Salakhutdinov, "Importance weighted
autoencoders" (2016), with ``--draws 50``; D. J. Rezende, S. Mohamed and D. Wierstra, "Stochastic
Backpropagation and Approximate Inference in Deep Generative Models" (2014), with ``--rank_one``,
whose posterior's precision is a diagonal and an outer product.
Data: a pixel is 1 with probability level / 16, drawn anew at each training step, and once for the
test set: 1437 digits to train on, 360 held out.
Command: ``jaxinf run experiments/digits_vae.py [--draws 50]``.
Hardware: 2 CPU cores, 40 seconds; 2 minutes with 50 draws.
Expected, one seed, standard errors over the test digits 0.20 to 0.22 where none is given: bounds
with 1, 5 and 50 draws of -22.6, -22.3 and -22.2 nats; trained with 50 draws -27.5 (0.4), -22.8 and
-21.8. Mean squared error of the hidden upper half 0.127 and 0.132, of the training mean 0.141.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxinf import data, nets, vi
from jaxinf.run import Experiment

PIXELS, WHITE = 64, 16


@dataclass(frozen=True, kw_only=True)
class Config:
    """What can be set on the command line."""

    draws: int = 1
    """Of the training objective: 1 for the evidence lower bound, more for importance weights."""
    rank_one: bool = False
    """Whether the posterior's precision has an outer product beside its diagonal."""
    latent: int = 16
    """How many latent numbers."""
    width: int = 128
    """Of the two hidden layers of encoder and decoder."""
    steps: int = 8000
    """Training steps."""
    batch: int = 64
    """Images a step."""
    learning_rate: float = 2e-3
    """Adam's rate at the start; it falls to zero as a cosine."""
    samples: int = 100
    """Images drawn from the model, a multiple of 10."""
    sweeps: int = 20
    """Rounds of the imputation of hidden pixels."""


class Held(NamedTuple):
    """Bounds on the test digits' log-evidence, in nats."""

    bound_1: jax.Array
    bound_5: jax.Array
    bound_50: jax.Array
    error_1: jax.Array
    """Standard error of the mean over test digits."""
    error_5: jax.Array
    error_50: jax.Array
    each_50: jax.Array


class Pictures(NamedTuple):
    """Test digits, what the autoencoder makes of them, and draws of the model."""

    digits: jax.Array
    reconstructions: jax.Array
    samples: jax.Array
    """Probabilities of 1."""


class Imputed(NamedTuple):
    """Mean squared errors of hidden pixels: the upper half of each test digit."""

    error: jax.Array
    by_mean: jax.Array
    """Of the training digits' mean in their place."""


def means_and_scales(params: vi.Perceptron, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return what :func:`vi.independent` takes."""
    mean, log_scale = jnp.split(params(2 * x - 1), 2)
    return mean, log_scale


def precisions(params: vi.Perceptron, x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return what :class:`vi.RankOne` takes; the direction starts away from zero."""
    mean, log_precision, direction = jnp.split(params(2 * x - 1), 3)
    return mean, log_precision, direction + 0.1


def decode(params: vi.Perceptron, z: jax.Array) -> jax.Array:
    """Return the pixels' logits."""
    return params(z)


def binarise(key: jax.Array, levels: jax.Array) -> jax.Array:
    """Draw pixels from their levels, of shape [examples, 8, 8, 1]."""
    shares = levels.reshape(len(levels), PIXELS) / WHITE
    return jax.random.bernoulli(key, shares).astype(jnp.float32)


def build(config: Config) -> Experiment:
    """Return the experiment."""
    digits = data.digits()
    train = digits.train
    test = binarise(jax.random.key(0), jnp.asarray(digits.test.x))
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    objective = vi.analytic_elbo() if config.draws == 1 else vi.iwae(config.draws)
    loss = vi.amortised(objective)

    def model(params: Any) -> vi.Autoencoder:
        """Return the autoencoder; its likelihood is Bernoulli's."""
        encoder, decoder = params
        if config.rank_one:
            return vi.autoencoder(
                precisions, decode, encoder, decoder, config.latent, posterior=vi.RankOne
            )
        return vi.autoencoder(means_and_scales, decode, encoder, decoder, config.latent)

    training = nets.training(
        lambda params, key, batch: loss(model(params), key, batch), optax.adam(rate)
    )

    def init(key: jax.Array) -> nets.TrainState:
        inner, outer = jax.random.split(key)
        out = config.latent * (3 if config.rank_one else 2)
        encoder = vi.perceptron(inner, PIXELS, out, width=config.width)
        return training.init(
            (encoder, vi.perceptron(outer, config.latent, PIXELS, width=config.width))
        )

    def batch(seed: int, step: int, index: Any) -> np.ndarray:
        return train.x[data.rows(seed, step, index, batch=config.batch, examples=len(train.x))]

    def step(key: jax.Array, state: nets.TrainState, levels: jax.Array) -> Any:
        pixels, noise = jax.random.split(key)
        return training.step(noise, state, binarise(pixels, levels))

    def held(key: jax.Array, state: nets.TrainState) -> Held:
        keys = jax.random.split(key, 3)
        one, five, fifty = (
            vi.bounds(key, model(state.average), test, k)
            for key, k in zip(keys, (1, 5, 50), strict=True)
        )
        errors = one.standard_error, five.standard_error, fifty.standard_error
        return Held(one.mean, five.mean, fifty.mean, *errors, fifty.each)

    def pictures(key: jax.Array, state: nets.TrainState) -> Pictures:
        first, second = jax.random.split(key)
        now, shown = model(state.average), test[:10]
        again = jax.vmap(now.reconstruct)(jax.random.split(first, 10), shown)
        z = jax.random.normal(second, (config.samples, config.latent))
        return Pictures(shown, again, jax.vmap(now.mean)(z))

    def imputed(key: jax.Array, state: nets.TrainState) -> Imputed:
        now = model(state.average)
        half = PIXELS // 2
        hidden = jnp.arange(PIXELS) < half
        average = jnp.asarray(train.x.reshape(-1, PIXELS).mean(axis=0) / WHITE, jnp.float32)

        def one(key: jax.Array, x: jax.Array) -> jax.Array:
            def sweep(guess: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
                inner, outer = jax.random.split(key)
                chance = now.reconstruct(inner, guess)
                drawn = jax.random.bernoulli(outer, chance).astype(x.dtype)
                return jnp.where(hidden, drawn, x), chance

            start = jnp.where(hidden, jnp.round(average), x)
            return jax.lax.scan(sweep, start, jax.random.split(key, config.sweeps))[1]

        chance = jax.vmap(one)(jax.random.split(key, len(test)), test)
        chance = jnp.mean(chance[:, config.sweeps // 2 :], axis=1)  # of the second half
        by_mean = jnp.square(test - average[None])[:, :half]
        return Imputed(jnp.mean(jnp.square(test - chance)[:, :half]), jnp.mean(by_mean))

    return Experiment(
        init=init,
        step=step,
        batch=batch,
        evaluate={"bounds": held, "pictures": pictures, "imputed": imputed},
        draw=draw,
        notes=notes,
        steps=config.steps,
        batch_size=config.batch,
    )


def tiled(images: np.ndarray, rows: int) -> np.ndarray:
    """Return images of 64 pixels side by side, in rows."""
    grid = np.pad(np.asarray(images).reshape(rows, -1, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.concatenate(np.concatenate(grid, axis=1), axis=1)


def draw(arrays: dict[str, Any]) -> dict[str, Any]:
    """Test digits above their reconstructions, draws of the model, and the bounds' histogram."""
    from matplotlib.figure import Figure

    shown = arrays["pictures"]
    figures = {}
    both = np.concatenate([shown.digits, shown.reconstructions])
    panels = (
        ("reconstructions", "test digits and their reconstructions", both, 2),
        ("samples", "draws of the model: chances of ink", shown.samples, len(shown.samples) // 10),
    )
    for name, title, images, rows in panels:
        figure = Figure(figsize=(5, 0.6 * rows + 0.4), layout="constrained")
        axis = figure.subplots()
        axis.imshow(tiled(images, rows), cmap="gray_r")
        axis.set_title(title)
        axis.axis("off")
        figures[name] = figure
    histogram = Figure(figsize=(5, 3), layout="constrained")
    axis = histogram.subplots()
    axis.hist(arrays["bounds"].each_50, bins=30)
    axis.set_xlabel("bound of a test digit with 50 draws, nats")
    axis.set_ylabel("digits")
    return figures | {"bounds": histogram}


def notes(arrays: dict[str, Any]) -> str:
    """The bounds as a table, and the errors of hidden pixels."""
    found, hidden = arrays["bounds"], arrays["imputed"]
    rows = [
        f"| {k} | {getattr(found, f'bound_{k}'):.2f} | {getattr(found, f'error_{k}'):.2f} |"
        for k in (1, 5, 50)
    ]
    head = ["| draws | bound on the test digits, nats | standard error |", "|---|---|---|"]
    last = (
        f"Mean squared error of the upper half, hidden: {hidden.error:.4f}; "
        f"of the training digits' mean: {hidden.by_mean:.4f}."
    )
    return "\n".join([*head, *rows, "", last])
