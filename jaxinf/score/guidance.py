"""Classifier-free guidance, with rescaling and an interval of times."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Band, Leaf, PyTree, Scalar, is_concrete, record
from jaxinf.process import Prediction, convert, v, x0
from jaxinf.score.denoiser import Denoiser, _check_null


@record
class Guided:
    """D(x, t, null) + scale (D(x, t, cond) - D(x, t, null)), within an interval of times."""

    denoiser: Leaf
    null: Leaf
    scale: Leaf
    rescale: Leaf
    interval: Leaf
    output: Leaf

    @property
    def process(self) -> Any:
        """The wrapped denoiser's."""
        return self.denoiser.process

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return the guided prediction of the clean example."""
        call = jax.vmap(self.denoiser, (None, None, 0))
        return self._guide(x, t, *call(x, t, self._both(cond)))

    def on_band(
        self, x: Array, t: Scalar, cond: PyTree, band: Band, context: PyTree
    ) -> tuple[Array, PyTree]:
        """Return a band of the guided prediction, and both calls' context behind its leading axis.

        See ``sampler.patch_parallel``.
        """
        if self.rescale is not None:
            raise ValueError(
                "rescale compares standard deviations over an example, of which a band is a part; "
                "pass rescale=None"
            )
        call = jax.vmap(self.denoiser.on_band, (None, None, 0, None, 1), (0, 1))
        predictions, context = call(x, t, self._both(cond), band, context)
        return self._guide(x, t, *predictions), context

    def _both(self, cond: PyTree) -> PyTree:
        """Return the condition and none along a leading axis."""
        _check_null(cond, self.null)
        return jax.tree.map(
            lambda a, b: jnp.stack([a, jnp.asarray(b, jnp.result_type(a))]), cond, self.null
        )

    def _guide(self, x: Array, t: Scalar, with_cond: Array, without: Array) -> Array:
        """Return the guided prediction from the two."""
        guided = without + self.scale * (with_cond - without)
        if self.rescale is not None:
            guided = self._rescaled(x, t, with_cond, guided)
        if self.interval is None:
            return guided
        low, high = self.interval
        return jnp.where((t >= low) & (t <= high), guided, with_cond)

    def _rescaled(self, x: Array, t: Scalar, with_cond: Array, guided: Array) -> Array:
        """Bring the guided output's standard deviation over the example towards the plain one's."""
        if x.size < 2:
            raise ValueError(
                f"rescale compares standard deviations over an example, and one of shape {x.shape} "
                "has none; pass rescale=None"
            )
        process = self.process
        plain = convert(process, t, x, with_cond, x0, self.output)
        pushed = convert(process, t, x, guided, x0, self.output)
        ratio = jnp.std(plain) / jnp.maximum(jnp.std(pushed), jnp.finfo(pushed.dtype).tiny)
        mixed = (self.rescale * ratio + (1 - self.rescale)) * pushed
        return convert(process, t, x, mixed, self.output, x0).astype(x.dtype)


def guided(
    denoiser: Denoiser,
    scale: Scalar,
    *,
    null: PyTree,
    rescale: Scalar | None = None,
    interval: tuple[Scalar, Scalar] | None = None,
    output: Prediction = v,
) -> Denoiser:
    """Classifier-free guidance, a denoiser again.

    D_w(x, t, c) = D(x, t, null) + w (D(x, t, c) - D(x, t, null)); the same w in any prediction,
    since all are linear in D at fixed (x, t).

    Args:
      denoiser: trained with ``drop`` > 0.
      scale: w; 1 (as a number) returns the denoiser itself, 0 ignores the condition.
      null: the condition of "no condition", of one example's condition's structure.
      rescale: mix phi in [0, 1] between the guided output and the same with the standard deviation
        (over the example) of the unguided conditional output; None leaves it out.
      interval: (low, high) times within which to guide; outside, the plain conditional prediction.
      output: the prediction whose standard deviation is kept by ``rescale``.

    Returns:
      The guided denoiser. Each call of it calls the wrapped one twice.

    Raises:
      ValueError: for a phi outside [0, 1] or an empty interval.

    Reference:
      Classifier-Free Diffusion Guidance, Ho and Salimans, 2022, equation 6 with its w + 1 our
      scale; Common Diffusion Noise Schedules and Sample Steps are Flawed, Lin et al., 2024,
      equations 14 to 16; Applying Guidance in a Limited Interval Improves Sample and Distribution
      Quality in Diffusion Models, Kynkaanniemi et al., 2024.
    """
    if rescale is not None and is_concrete(rescale) and not 0 <= float(rescale) <= 1:
        raise ValueError(
            f"rescale is a mix and must lie in [0, 1], got {rescale}; the paper's is 0.7"
        )
    if interval is not None and is_concrete(interval) and not interval[0] < interval[1]:
        raise ValueError(
            f"the interval must be (low, high) with low < high, got {interval}; times run from "
            "data at 0 to noise"
        )
    if is_concrete(scale) and jnp.ndim(scale) == 0 and float(scale) == 1:
        return denoiser
    return Guided(denoiser, null, scale, rescale, interval, output)
