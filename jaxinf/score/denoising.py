"""Denoising score matching with any target, weight and law of times."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import (
    Key,
    Leaf,
    PyTree,
    Scalar,
    batch_vmap,
    check_batch,
    check_key,
    is_concrete,
    record,
    static,
)
from jaxinf.process import Gaussian, Prediction
from jaxinf.process.prediction import check_informative
from jaxinf.score.denoiser import Network, _check_null
from jaxinf.score.times import Times, stratified
from jaxinf.score.times import uniform as uniform_times
from jaxinf.score.weights import Likelihood, Weight


class Batch(NamedTuple):
    """Clean examples and what they are conditioned on."""

    x: Float[Array, "batch *event"]
    cond: PyTree = None


class DenoisingInfo(NamedTuple):
    """What a loss tells, one number an example."""

    t: Float[Array, " batch"]
    """The times that were drawn."""
    loss: Float[Array, " batch"]
    """The weighted losses; their mean is the value."""


@record
class Denoising:
    """The loss; called as ``loss(params, key, batch)``."""

    process: Leaf
    target: Leaf
    weight: Leaf
    times: Leaf
    drop: Leaf
    null: Leaf
    apply: Callable[..., Array] = static()

    def __call__(self, params: PyTree, key: Key, batch: Any) -> tuple[Array, DenoisingInfo]:
        """Return the mean weighted squared error over batch and dimensions, and its parts."""
        x, cond = _unpack(batch)
        check_key(key)
        if self.null is not None:
            _check_null(cond, self.null)
        count, process = x.shape[0], self.process
        dtype = jnp.promote_types(x.dtype, jnp.float32)
        key_times, key_examples = jax.random.split(key)
        times, rates = stratified(key_times, self.times, process, count, dtype)
        keys = jax.vmap(jax.random.fold_in, (None, 0))(key_examples, jnp.arange(count))
        network = Network(process, params, self.target, self.apply)

        def one(key: Key, x: Array, cond: PyTree, t: Array, rate: Array) -> Array:
            key_noise, key_drop = jax.random.split(key)
            noisy, noise = process.perturb(x, jax.random.normal(key_noise, x.shape, x.dtype), t)
            if self.null is not None:
                dropped = jax.random.bernoulli(key_drop, self.drop)
                cond = jax.tree.map(lambda a, b: jnp.where(dropped, b, a), cond, self.null)
            error = network.output(noisy, t, cond) - self.target.encode(process, t, x, noise)
            return self._weight(t, rate) * jnp.mean(jnp.square(error.astype(dtype)))

        losses = batch_vmap(one)(keys, x, cond, times, rates)
        return jnp.mean(losses), DenoisingInfo(times, losses)

    def _weight(self, t: Array, rate: Array) -> Array:
        """Weight on the target's squared error: the wanted one over the target's own."""
        if self.weight is None:
            return jnp.ones_like(t)
        weight = self.weight.weight(self.process, t) / self.target.weight(self.process, t)
        return weight * rate if isinstance(self.weight, Likelihood) else weight


def denoising(
    process: Gaussian,
    apply: Callable[..., Array],
    *,
    target: Prediction,
    weight: Weight | Prediction | None = None,
    times: Times | None = None,
    drop: Scalar = 0.0,
    null: PyTree = None,
) -> Denoising:
    """Denoising score matching: regress a network on what made the noisy example.

    loss = E_{t, x_0, e} w(t) |F_theta(x_t, t, cond) - F(x_0, e)|^2 / dimensions, with
    x_t = alpha x_0 + sigma e. With ``target=velocity`` it is flow matching's loss.

    Args:
      process: the Gaussian process.
      apply: the network, as in :func:`denoiser`.
      target: what the network predicts: ``x0``, ``eps``, ``v``, ``score``, ``velocity`` or
        ``preconditioned(data_scale)``.
      weight: what errors count; by default the target's own, an unweighted loss on it. Another
        prediction counts as an unweighted loss on that one would; also ``min_snr(gamma)`` and
        ``likelihood()``.
      times: the law of times; uniform by default.
      drop: probability with which the condition is replaced by ``null``, for guidance.
      null: the condition of "no condition", of one example's condition's structure.

    Returns:
      A pytree called as ``loss(params, key, batch)`` with ``batch = (x, cond)``, x floating of
      shape (batch, ...) and cond a pytree with the batch's leading axis or None; it returns
      (value, :class:`DenoisingInfo`).

    Raises:
      ValueError: for a probability outside [0, 1], for ``drop`` without ``null``, and for a target
        that says nothing of the data at alpha = 0. When called: for an empty batch or a condition
        of another length.
      TypeError: when called with examples that are not floating.

    Reference:
      A Connection Between Score Matching and Denoising Autoencoders, Vincent, 2011;
      Denoising Diffusion Probabilistic Models, Ho et al., 2020, equation 14;
      Flow Matching for Generative Modeling, Lipman et al., 2023, equation 9.
    """
    check_informative(process, target)
    if is_concrete(drop):
        if not 0 <= float(drop) <= 1:
            raise ValueError(f"drop is a probability and must lie in [0, 1], got {drop}")
        if float(drop) > 0 and null is None:
            raise ValueError(
                "dropping conditions needs the condition that stands for none: pass null=classes "
                "for a network made with classes=classes"
            )
    return Denoising(process, target, weight, times or uniform_times(), drop, null, apply)


def _unpack(batch: Any) -> tuple[Array, PyTree]:
    if not (isinstance(batch, tuple) and len(batch) == 2):
        raise TypeError(
            f"a batch is a pair (x, cond), got {type(batch).__name__}; score.Batch(x) makes one "
            "without conditions"
        )
    x, cond = batch
    check_batch(x, cond)
    return jnp.asarray(x), cond
