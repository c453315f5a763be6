"""Denoisers: (x, t, cond) -> E[x_0 | x_t = x] for one example, as pytrees."""

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Band, Leaf, PyTree, Scalar, record, static
from jaxinf.process import Gaussian, Prediction
from jaxinf.process.prediction import check_informative


@runtime_checkable
class Denoiser(Protocol):
    """What samplers, likelihoods and guidance ask of a score model."""

    @property
    def process(self) -> Leaf:
        """The process that it was trained on."""
        ...

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return the mean of the clean example given the noisy one, of x's shape."""
        ...


@record
class Network:
    """A network's prediction, turned into the clean example."""

    process: Leaf
    params: Leaf
    predicts: Leaf
    apply: Callable[..., Array] = static()

    def output(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return what the network predicts, ``predicts`` at (x, t)."""
        out = self.apply(self.params, *self._inputs(x, t), cond)
        if out.shape != x.shape:
            raise ValueError(
                f"the network must return the example's shape {x.shape}, it returned {out.shape}; "
                "apply(params, x, t, cond) is called for one example, without a batch axis"
            )
        return out

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return the mean of the clean example."""
        return self._clean(x, t, self.output(x, t, cond))

    def on_band(
        self, x: Array, t: Scalar, cond: PyTree, band: Band, context: PyTree
    ) -> tuple[Array, PyTree]:
        """Return the mean of a band of the clean example, and the network's context."""
        if not hasattr(self.apply, "on_band"):
            raise TypeError(
                "this network works on whole examples alone: its apply has no on_band(params, x, "
                "t, cond, band, context) -> (out, context); nets.transformer's has"
            )
        out, context = self.apply.on_band(self.params, *self._inputs(x, t), cond, band, context)
        return self._clean(x, t, out), context

    def _inputs(self, x: Array, t: Scalar) -> tuple[Array, Array]:
        """Return the example at unit scale, and the noise level."""
        process, d = self.process, self.predicts.data_scale
        alpha, sigma = process.alpha(t), process.sigma(t)
        power = jnp.square(alpha * d) + jnp.square(sigma)
        scaled = (x * jax.lax.rsqrt(power)).astype(x.dtype)
        return scaled, noise_level(process, t).astype(x.dtype)

    def _clean(self, x: Array, t: Scalar, output: Array) -> Array:
        """Return the clean example from the network's output."""
        return self.predicts.decode(self.process, t, x, output)[0].astype(x.dtype)


def noise_level(process: Gaussian, t: Scalar) -> Float[Array, ""]:
    """Return log(sigma / alpha) / 4, cut to 2.5 on both sides: the time that a network is given.

    It depends on the noise alone, so a network serves any schedule, and it is finite at both ends.
    For ``process.edm()`` it is EDM's c_noise (Karras et al., 2022, table 1).
    """
    return -jnp.clip(process.log_snr(t), -20.0, 20.0) / 8


def denoiser(
    process: Gaussian,
    apply: Callable[..., Array],
    params: PyTree,
    *,
    predicts: Prediction,
) -> Network:
    """The denoiser of a trained network.

    Args:
      process: the process that it was trained on.
      apply: ``apply(params, x, t, cond)`` for one example, returning x's shape; ``x`` is the noisy
        example divided by sqrt(alpha^2 d^2 + sigma^2) for d = ``predicts.data_scale``, and ``t``
        the noise level log(sigma / alpha) / 4 within [-2.5, 2.5]. The same function object each
        time, or one that compares equal: it is part of the denoiser's type.
      params: the network's parameters, the denoiser's leaves.
      predicts: what the network was trained to predict, ``score.v`` say.

    Returns:
      A pytree, called as ``denoiser(x, t, cond)``.

    Raises:
      ValueError: where ``predicts`` is the noise or the score and alpha(t_max) is 0: there it says
        nothing of the data.
    """
    check_informative(process, predicts)
    return Network(process, params, predicts, apply)


def _check_null(cond: PyTree, null: PyTree) -> None:
    """Raise unless a condition is there and has the structure of the one that stands for none."""
    given, wanted = jax.tree.structure(cond), jax.tree.structure(null)
    if given != wanted or wanted.num_leaves == 0:
        raise ValueError(
            f"the condition must have the structure of null, {wanted}, and it has {given}; pass "
            "cond with the examples, and as null one example's condition that stands for none"
        )


@record
class Oracle:
    """The perfect denoiser of a known law."""

    process: Leaf
    law: Leaf

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return E[x_0 | x_t = x] exactly."""
        return self.process.posterior_mean(self.law, x, t)


def oracle(process: Gaussian, law: Any) -> Oracle:
    """The perfect denoiser of data of a known law, by which samplers and likelihoods are checked.

    Args:
      process: the Gaussian process.
      law: a law of the core, ``core.gaussian(...)`` or ``core.mixture(...)``.

    Returns:
      A denoiser; it ignores conditions.
    """
    return Oracle(process, law)
