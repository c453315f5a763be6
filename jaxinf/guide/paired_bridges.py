"""Diffusion bridges between paired data: from x_T, a degraded example say, back to x_0."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import (
    Key,
    Leaf,
    Noise,
    PyTree,
    Scalar,
    batch_vmap,
    check_batch,
    check_key,
    divide,
    is_concrete,
    record,
    root,
    static,
)
from jaxinf.process import Gaussian, Pinned, Prediction, pinned
from jaxinf.sampler import Denoise, StepInfo
from jaxinf.score import DenoisingInfo, Network, Times, Weight, uniform
from jaxinf.score.times import stratified


class BridgeState(NamedTuple):
    """What the sampler carries."""

    x: Leaf
    end: Leaf
    """x_T, from which it started."""


@record
class PairedBridge:
    """x_s = a_s x_0 + b_s x_T + sqrt(c_s^2 - tau^2) e + tau z, with x_0 the prediction."""

    pins: Leaf
    eta: Leaf

    @property
    def process(self) -> Leaf:
        """The process that is pinned."""
        return self.pins.process

    def init(self, x: Array) -> BridgeState:
        """Return the state at the start x_T."""
        return BridgeState(x, x)

    def step(
        self, denoise: Denoise, noise: Noise, state: BridgeState, t: Scalar, s: Scalar
    ) -> tuple[BridgeState, StepInfo]:
        """Go from t to s; at T there is no noise to go on with, and all of it is drawn."""
        pins, (x, end) = self.pins, state
        clean = denoise(x, t)
        a, b, c = pins.coefficients(t)
        _, _, scale = pins.coefficients(s)
        direction = divide(x - a * clean - b * end, c)
        tau = jnp.minimum(self.eta * pins.until(t).coefficients(s)[2], scale)
        tau = jnp.where(t >= pins.end * (1 - 1e-6), scale, tau)
        along = root((scale - tau) * (scale + tau))
        fresh = pins.process.covariance.sqrt(noise.increment(t, s))
        x = pins.law(clean, end, s).mean + along * direction + tau * fresh
        return BridgeState(x, end), StepInfo(clean)

    def calls(self, t: float, s: float) -> int:
        """One call a step."""
        return 1


def paired_bridge(process: Gaussian, eta: Scalar = 1.0) -> PairedBridge:
    r"""The sampler of diffusion bridges: from x_T at ``t_max`` to x_0, given x_T.

    With a, b, c of ``process.pinned`` and e = (x_t - a_t x_0 - b_t x_T) / c_t,

    .. math:: x_s = a_s \hat x_0 + b_s x_T + \sqrt{c_s^2 - \tau^2}\, e + \tau C^{1/2} z

    with tau = eta times the standard deviation of q(x_s | x_0, x_t, x_T), which x_T does not enter:
    at eta = 1 it is the posterior's step, I2SB's and ``sampler.ancestral``'s. At eta = 0 all noise
    is drawn in the first step, and the rest follows DDBM's probability flow. Any eta keeps
    q(x_t | x_T) as the steps shrink::

        stepper = guide.paired_bridge(p)
        out = sampler.sample(key, stepper, denoiser, sampler.uniform(p, 100), x_T, cond=x_T)

    Args:
      process: the Gaussian process that is pinned; with alpha = 1 it is I2SB's.
      eta: amount of fresh noise, not negative.

    Returns:
      The stepper, for plans that start at ``process.t_max``. Its denoiser is
      E[x_0 | x_t, x_T], called as ``denoiser(x, t, cond)`` with x_T as the condition, such as
      ``score.denoiser`` makes of what :func:`paired_denoising` trained.

    Raises:
      ValueError: for a negative eta, or where alpha(t_max) is 0.

    Reference:
      I2SB: Image-to-Image Schrodinger Bridge, Liu et al., 2023, algorithm 2; Denoising Diffusion
      Bridge Models, Zhou et al., 2024, equation 8; the steps between the two: Diffusion Bridge
      Implicit Models, Zheng et al., 2025.
    """
    if is_concrete(eta) and not float(eta) >= 0:
        raise ValueError(f"eta must not be negative, got {eta}; 1 is the posterior's step")
    return PairedBridge(pinned(process), eta)


class Pairs(NamedTuple):
    """Both ends of bridges."""

    x: Leaf
    """x_0: what is wanted."""
    end: Leaf
    """x_T: what is given, of the same shape."""


@record
class PairedDenoising:
    """The loss; called as ``loss(params, key, pairs)``."""

    pins: Leaf
    target: Leaf
    weight: Leaf
    times: Leaf
    apply: Callable[..., Array] = static()

    def __call__(self, params: PyTree, key: Key, batch: Any) -> tuple[Array, DenoisingInfo]:
        """Return the mean weighted squared error over batch and dimensions, and its parts."""
        x, end = batch
        check_batch(x)
        check_key(key)
        if jnp.shape(x) != jnp.shape(end):
            raise ValueError(
                f"pairs are two batches of one shape, got x_0 of shape {jnp.shape(x)} and x_T of "
                f"shape {jnp.shape(end)}; fill up what a degraded example lacks"
            )
        pins, process, count = self.pins, self.pins.process, x.shape[0]
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        key_times, key_examples = jax.random.split(key)
        times, _ = stratified(key_times, self.times, process, count, dtype)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key_examples, jnp.arange(count))
        network = Network(process, params, self.target, self.apply)

        def one(key: Key, x: Array, end: Array, t: Array) -> Array:
            noisy = pins.perturb(x, end, jax.random.normal(key, x.shape, x.dtype), t)
            noise = divide(noisy - process.alpha(t) * x, process.sigma(t))
            error = network.output(noisy, t, end) - self.target.encode(process, t, x, noise)
            return self._weight(t) * jnp.mean(jnp.square(error.astype(dtype)))

        losses = batch_vmap(one)(keys, x, end, times)
        return jnp.mean(losses), DenoisingInfo(times, losses)

    def _weight(self, t: Array) -> Array:
        """Weight on the target's squared error: the wanted one over the target's own."""
        if self.weight is None:
            return jnp.ones_like(t)
        process = self.pins.process
        return self.weight.weight(process, t) / self.target.weight(process, t)


def paired_denoising(
    process: Gaussian,
    apply: Callable[..., Array],
    *,
    target: Prediction,
    weight: Weight | Prediction | None = None,
    times: Times | None = None,
) -> PairedDenoising:
    """The denoising loss of diffusion bridges: regress on x_0, given x_t and x_T.

    loss = E w(t) |F_theta(x_t, t, x_T) - F(x_0, e)|^2 / dimensions, for x_t of the process pinned
    at both ends of a pair and e = (x_t - alpha x_0) / sigma. With ``target=process.eps`` and
    alpha = 1 it is I2SB's, |eps_theta - (x_t - x_0) / sigma_t|^2; with ``target=process.x0``
    DDBM's, whose score of q(x_t | x_T) is affine in it.

    Args:
      process: the Gaussian process that is pinned.
      apply: the network, as ``score.denoiser`` takes it: ``apply(params, x, t, cond)`` with x_T as
        the condition, which I2SB's networks do not look at.
      target: what the network predicts: ``process.x0``, ``process.eps``, ...
      weight: what errors count, as ``score.denoising`` takes it but for ``score.likelihood()``.
      times: the law of times; uniform by default.

    Returns:
      A pytree called as ``loss(params, key, (x_0, x_T))`` with both of shape (batch, ...), such as
      :class:`Pairs`; it returns (value, ``score.DenoisingInfo``).

    Raises:
      ValueError: where alpha(t_max) is 0. When called: for an empty batch or ends of another
        shape.

    Reference:
      I2SB: Image-to-Image Schrodinger Bridge, Liu et al., 2023, equation 12 and algorithm 1;
      Denoising Diffusion Bridge Models, Zhou et al., 2024, section 4.
    """
    pins: Pinned = pinned(process)
    return PairedDenoising(pins, target, weight, times or uniform(), apply)
