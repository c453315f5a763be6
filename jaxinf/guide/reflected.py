"""Reflected diffusions on the unit cube: noise, and the way back from it, that never leave."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import (
    Diagonal,
    Key,
    Leaf,
    Noise,
    PyTree,
    Scalar,
    batch_vmap,
    check_batch,
    check_key,
    concretely,
    is_concrete,
    record,
    root,
    static,
)
from jaxinf.process import Gaussian
from jaxinf.sampler import Denoise, State
from jaxinf.score import DenoisingInfo, Times, uniform
from jaxinf.score.times import stratified

SWITCH = 2 / jnp.pi
"""The variance at which images and cosines fall off alike."""
TERMS = 4
"""Images on each side, and cosines: at the switch the next are below 1e-21."""


def fold(x: Array) -> Array:
    """Reflect numbers at 0 and 1 until they are within: the path of Brownian motion, folded.

    Args:
      x: any numbers.

    Returns:
      Of x's shape, in [0, 1].
    """
    return 1 - jnp.abs(1 - jnp.mod(x, 2))


def heat_kernel(x: Array, y: Array, variance: Scalar) -> Float[Array, ""]:
    r"""Log transition density of reflected Brownian motion on [0, 1]^d, in nats.

    Per coordinate, by images where the variance is small and by cosines where it is large:

    .. math:: p(y \mid x) = \sum_n \phi_v(y - x + 2n) + \phi_v(y + x + 2n)
              = 1 + 2 \sum_{k \ge 1} \cos(k \pi x) \cos(k \pi y)\, e^{-k^2 \pi^2 v / 2}

    Args:
      x: the start, in [0, 1].
      y: the end, of x's shape.
      variance: v of the motion that is not reflected, positive; at 0 it is taken as the dtype's
        epsilon.

    Returns:
      Shape (), the sum over coordinates.

    Reference:
      Reflected Diffusion Models, Lou and Ermon, 2023.
    """
    variance = jnp.asarray(variance, x.dtype)
    small = jnp.clip(variance, jnp.finfo(x.dtype).eps, SWITCH)
    large = jnp.maximum(variance, SWITCH)
    away = 2.0 * jnp.arange(-TERMS, TERMS + 1, dtype=x.dtype)
    waves = jnp.pi * jnp.arange(1, TERMS + 1, dtype=x.dtype)

    def one(x: Array, y: Array) -> Array:
        gaps = jnp.concatenate([y - x + away, y + x + away])
        images = jax.nn.logsumexp(-jnp.square(gaps) / (2 * small)) - jnp.log(2 * jnp.pi * small) / 2
        decay = jnp.exp(-jnp.square(waves) * large / 2)
        cosines = jnp.log1p(2 * jnp.sum(jnp.cos(waves * x) * jnp.cos(waves * y) * decay))
        return jnp.where(variance < SWITCH, images, cosines)

    return jnp.sum(jax.vmap(one)(x.ravel(), y.ravel()))


@record
class Reflected:
    """x_t = fold(x_0 + sigma(t) z) on [0, 1]^d, which tends to the uniform law."""

    process: Leaf

    @property
    def t_min(self) -> Leaf:
        """Earliest time at which the transition has a density."""
        return self.process.t_min

    @property
    def t_max(self) -> Leaf:
        """Latest time."""
        return self.process.t_max

    def sigma(self, t: Scalar) -> Array:
        """Scale of the noise at t."""
        return self.process.sigma(t)

    def perturb(self, x0: Array, z: Array, t: Scalar) -> Array:
        """Return x_t from one example and white noise z, exactly."""
        return fold(x0 + self.sigma(t) * z).astype(x0.dtype)

    def log_prob(self, x0: Array, x: Array, t: Scalar) -> Float[Array, ""]:
        """Return log p(x_t = x | x_0), in nats."""
        return heat_kernel(x0, x, jnp.square(self.sigma(t)))

    def score(self, x0: Array, x: Array, t: Scalar) -> Array:
        """Return its gradient in x, which vanishes across the walls."""
        return jax.grad(self.log_prob, 1)(x0, x, t)

    def renoise(self, noise: Noise, x: Array, t: Scalar, s: Scalar) -> Array:
        """Return x_s for s noisier than t, exactly."""
        scale = root(jnp.square(self.sigma(s)) - jnp.square(self.sigma(t)))
        return fold(x + scale * noise.increment(t, s))


def reflected(process: Gaussian) -> Reflected:
    """A Gaussian process of noise on the unit cube, reflected at its walls.

    Args:
      process: of white noise and alpha = 1, ``process.gaussian(process.edm(0.002, 3.0))``; what is
        left of the data at the end is exp(-pi^2 sigma(t_max)^2 / 2). Its plans and laws of times
        are the reflected process's.

    Returns:
      The process; samplers start from the uniform law, ``jax.random.uniform(key, shape)``.

    Raises:
      ValueError: for a process whose alpha is not 1, or noise that is not white.

    Reference:
      Reflected Diffusion Models, Lou and Ermon, 2023.
    """
    white = isinstance(process.covariance, Diagonal) and jnp.size(process.covariance.scale) == 1
    if is_concrete(process):
        with concretely():
            alpha = float(jnp.asarray(process.alpha(process.t_max)))
            white = white and float(process.covariance.scale) == 1
        if alpha != 1:
            raise ValueError(
                f"reflected Brownian motion keeps the data's scale: alpha must be 1, and it is "
                f"{alpha:.4g} at t_max; take process.edm or process.variance_exploding"
            )
    if not white:
        raise ValueError(
            "the coordinates are reflected one by one, so their noise must be white: "
            "process.gaussian(schedule) without a covariance"
        )
    return Reflected(process)


class ReflectedInfo(NamedTuple):
    """What a step tells."""

    score: Leaf
    """The score at the step's start."""


@record
class ReflectedEuler:
    """x_s = fold(x + (sigma_t^2 - sigma_s^2) score + sqrt(sigma_t^2 - sigma_s^2) z)."""

    process: Leaf

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar
    ) -> tuple[State, ReflectedInfo]:
        """Go from t to s; what the driver calls a denoiser is the score."""
        score = denoise(state.x, t)
        variance = jnp.square(self.process.sigma(t)) - jnp.square(self.process.sigma(s))
        moved = state.x + variance * score + root(variance) * noise.increment(t, s)
        return State(fold(moved)), ReflectedInfo(score)

    def calls(self, t: float, s: float) -> int:
        """One call a step."""
        return 1


def reflected_euler(process: Reflected) -> ReflectedEuler:
    """Euler's method on the reverse reflected equation, each step folded back: weak order one.

    dx = -g^2 grad log p_t dt + g dW + dL backwards in time, L being the push of the walls::

        p = process.gaussian(process.edm(0.002, 3.0))
        stepper, plan = guide.reflected_euler(guide.reflected(p)), sampler.karras(p, 100)
        x = sampler.sample(key, stepper, score, plan, jax.random.uniform(key, (64, 2))).x

    Args:
      process: from :func:`reflected`.

    Returns:
      The stepper. In the denoiser's place the driver takes the score, a pytree called as
      ``score(x, t, cond)`` with grad log p_t(x) of x's shape.

    Reference:
      Reflected Diffusion Models, Lou and Ermon, 2023.
    """
    return ReflectedEuler(process)


@record
class ReflectedDenoising:
    """The loss; called as ``loss(params, key, (x, cond))``."""

    process: Leaf
    times: Leaf
    apply: Callable[..., Array] = static()

    def __call__(self, params: PyTree, key: Key, batch: Any) -> tuple[Array, DenoisingInfo]:
        """Return the mean weighted squared error over batch and dimensions, and its parts."""
        x, cond = batch
        check_batch(x, cond)
        check_key(key)
        process, count = self.process, x.shape[0]
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        key_times, key_examples = jax.random.split(key)
        times, _ = stratified(key_times, self.times, process.process, count, dtype)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key_examples, jnp.arange(count))

        def one(key: Key, x: Array, cond: PyTree, t: Array) -> Array:
            noisy = process.perturb(x, jax.random.normal(key, x.shape, x.dtype), t)
            error = self.apply(params, noisy, t, cond) - process.score(x, noisy, t)
            return jnp.square(process.sigma(t)) * jnp.mean(jnp.square(error.astype(dtype)))

        losses = batch_vmap(one)(keys, x, cond, times)
        return jnp.mean(losses), DenoisingInfo(times, losses)


def reflected_denoising(
    process: Reflected, apply: Callable[..., Array], *, times: Times | None = None
) -> ReflectedDenoising:
    """Constrained denoising score matching: regress on the transition's score.

    loss = E sigma(t)^2 |s_theta(x_t, t) - grad log p(x_t | x_0)|^2 / dimensions, whose minimum is
    the score of the marginal; no term at the walls is left, since both vanish across them.

    Args:
      process: from :func:`reflected`.
      apply: the score network, ``apply(params, x, t, cond)`` for one example, of x's shape.
      times: the law of times; uniform by default.

    Returns:
      A pytree called as ``loss(params, key, (x, cond))`` with x in [0, 1], shape (batch, ...); it
      returns (value, ``score.DenoisingInfo``).

    Reference:
      Reflected Diffusion Models, Lou and Ermon, 2023.
    """
    return ReflectedDenoising(process, times or uniform(), apply)
