"""Mean-score calibration: subtract what a score's mean over the noisy data should not have."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf.core import (
    Key,
    Leaf,
    PyTree,
    Scalar,
    check_batch,
    check_key,
    is_concrete,
    record,
    static,
)
from jaxinf.score.denoiser import Denoiser


@record
class Calibrated:
    """A denoiser less its mean error, by interpolation in a table over times (and classes)."""

    denoiser: Leaf
    times: Leaf  # (levels,), rising
    error: Leaf  # (levels, classes, *event), one class where there are none
    by_class: bool = static()

    @property
    def process(self) -> Any:
        """The wrapped denoiser's."""
        return self.denoiser.process

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return the calibrated prediction of the clean example."""
        row = cond if self.by_class else 0
        table = self.error.at[:, row].get(mode="fill", fill_value=0)
        times = jnp.asarray(self.times, table.dtype)
        place = jnp.interp(t, times, jnp.arange(times.shape[0], dtype=table.dtype))
        below = jnp.clip(jnp.floor(place).astype(int), 0, times.shape[0] - 2)
        share = place - below
        error = (1 - share) * table[below] + share * table[below + 1]
        return (self.denoiser(x, t, cond) - error).astype(x.dtype)


def calibrate(
    key: Key,
    denoiser: Denoiser,
    x: Float[Array, "batch *event"],
    times: Float[Array, " levels"],
    cond: Int[Array, " batch"] | None = None,
    *,
    classes: int | None = None,
    draws: int = 1,
) -> Calibrated:
    """Calibrate a score model once, after training.

    The score's mean over the noisy data is zero at every time, E_{q_t}[grad log q_t] = 0, which is
    E[D(x_t, t)] = E[x_0] for the denoiser; so the mean error eta_t = E[D(x_t, t)] - E[x_0] is
    measured on data and subtracted. It lowers the score-matching loss at each time by the paper's
    |E s|^2, here alpha^2 |eta_t|^2 / sigma^4, and stays finite at both ends of time.

    Args:
      key: for the noise.
      denoiser: the model.
      x: clean examples, the training set's.
      times: at which to measure, at least two, rising; in between it is interpolated.
      cond: class labels where the model takes them.
      classes: how many classes to calibrate apart, each by its own mean; None for one mean. A
        label that is none of them, the null of guidance say, is left as it is.
      draws: noise draws an example and time, at least 1.

    Returns:
      The calibrated denoiser.

    Raises:
      ValueError: for an empty set, times that do not rise, or classes without labels.

    Reference:
      On Calibrating Diffusion Probabilistic Models, Pang et al., 2023, equations 11 and 15.
    """
    check_key(key)
    times = jnp.asarray(times)
    check_batch(x, cond)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")
    if times.shape[0] < 2 or (is_concrete(times) and not bool(jnp.all(jnp.diff(times) > 0))):
        raise ValueError("calibration times must rise and be at least two; jnp.sort(times) orders")
    if classes is not None and classes < 1:
        raise ValueError(f"classes must be at least 1, got {classes}; None calibrates one mean")
    if classes is not None and cond is None:
        raise ValueError("classes apart need their labels: pass cond=labels")
    error = _mean_error(key, denoiser, x, times, cond, classes, draws)
    return Calibrated(denoiser, times, error, classes is not None)


@jax.jit(static_argnames=("classes", "draws"))
def _mean_error(
    key: Key,
    denoiser: Denoiser,
    x: Array,
    times: Array,
    cond: PyTree,
    classes: int | None,
    draws: int,
) -> Float[Array, "levels classes *event"]:
    """Mean of D(x_t, t) - x_0 for each time and class."""
    labels = jnp.zeros(x.shape[0], int) if classes is None else cond
    share = jax.nn.one_hot(labels, classes or 1, axis=0, dtype=x.dtype)
    share = share / jnp.maximum(jnp.sum(share, axis=1, keepdims=True), 1)

    def level(_: None, slot: tuple[Key, Array]) -> tuple[None, Array]:
        key, t = slot

        def one(key: Key, x: Array, cond: PyTree) -> Array:
            z = jax.random.normal(key, (draws, *x.shape), x.dtype)
            noisy = jax.vmap(lambda z: denoiser.process.perturb(x, z, t)[0])(z)
            clean = jax.vmap(denoiser, (0, None, None))(noisy, t, cond)
            return jnp.mean(clean, axis=0) - x

        errors = jax.vmap(one)(jax.random.split(key, x.shape[0]), x, cond)
        return None, jnp.tensordot(share, errors, 1)

    slots = (jax.random.split(key, times.shape[0]), times)
    return jax.lax.scan(level, None, slots)[1]
