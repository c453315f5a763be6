"""A denoiser conditioned on an observation: a denoiser again, with a twist that corrects it."""

from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jaxtyping import Array, Float

from jaxinf.core import Leaf, PyTree, Scalar, record
from jaxinf.guide.belief import Apply, Belief
from jaxinf.guide.evaluation import Evaluation, Moments, applied, evaluate, log_final, spread
from jaxinf.guide.likelihood import Likelihood
from jaxinf.score import Denoiser


class View(NamedTuple):
    """How a method sees p(x_0 | x_t)."""

    belief: Belief
    pull: Apply
    """v -> (sigma^2 / alpha) C (d belief.mean / dx)^T v, which moves the clean example."""


@runtime_checkable
class Method(Protocol):
    """An approximation of p(x_0 | x_t) by a Gaussian, from the mean and Tweedie's covariance."""

    def view(self, process: Any, x: Array, t: Scalar, mean: Array, tweedie: Apply) -> View:
        """Return what is believed at (x, t).

        ``tweedie`` is v -> (sigma^2 / alpha) C (dD / dx)^T v, the covariance of p(x_0 | x_t) for a
        perfect denoiser D, whose value at x is ``mean``.
        """
        ...


@record
class Conditioned:
    """D + scale (sigma^2 / alpha) C grad log p(y | x_t); see :func:`conditioned`."""

    denoiser: Leaf
    likelihood: Leaf
    method: Leaf
    scale: Leaf

    @property
    def process(self) -> Any:
        """The wrapped denoiser's."""
        return self.denoiser.process

    def __call__(self, x: Array, t: Scalar, cond: PyTree = None) -> Array:
        """Return the mean of the clean example given the noisy one and the observation."""
        return self.evaluate(x, t, cond, False).guided.mean

    def evaluate(self, x: Array, t: Scalar, cond: PyTree, full: bool) -> Evaluation:
        """Return the wrapped denoiser's evaluation, moved and tilted."""
        if full:
            inner = evaluate(self.denoiser, x, t, cond, True)
            tweedie = partial(applied, inner.guided.covariance)
        else:

            def call(x: Array) -> tuple[Array, Evaluation]:
                inner = evaluate(self.denoiser, x, t, cond, False)
                return inner.guided.mean, inner

            _, back, inner = jax.vjp(call, x, has_aux=True)

            def tweedie(v: Array) -> Array:
                return spread(self.process, t, back(v)[0])

        mean, covariance = inner.guided
        belief, pull = self.method.view(self.process, x, t, mean, tweedie)

        def gradient(m: Array) -> Array:
            return self.likelihood.tilt(belief._replace(mean=m)).gradient

        log_evidence, slope = self.likelihood.tilt(belief)
        if covariance is not None and getattr(self.likelihood, "narrows", True):
            # of N(m, V) tilted by exp(l(m)): V + V l''(m) V
            _, push = jax.linearize(gradient, belief.mean)
            rows = jax.vmap(push)(covariance.reshape(x.size, *x.shape))
            curve = rows.reshape(x.size, x.size)  # V l''(m), by as many products as l is of numbers
            covariance = covariance + self.scale * curve @ covariance
            covariance = (covariance + covariance.T) / 2
        moved = (mean + self.scale * pull(slope)).astype(mean.dtype)
        twist = inner.log_twist + log_evidence.astype(inner.log_twist.dtype)
        return inner._replace(guided=Moments(moved, covariance), log_twist=twist)

    def log_final(self, x: Array) -> Float[Array, ""]:
        """Return the exact log likelihood at a clean example, and those of what is wrapped."""
        return self.likelihood.log_prob(x) + log_final(self.denoiser, x)


def conditioned(
    denoiser: Denoiser, likelihood: Likelihood, method: Method, *, scale: Scalar = 1.0
) -> Conditioned:
    r"""A denoiser given an observation of the clean example; a denoiser again.

    .. math:: D_y(x, t) = D(x, t) + w \frac{\sigma^2}{\alpha} C \nabla_x \log \hat p(y \mid x_t = x)

    The method says how p(x_0 | x_t) is approximated, the likelihood what y says of it. Every
    sampler runs the result, which is biased where the approximation is; :func:`guide.particles`
    weighs it, so that its law becomes that of the prior's chain given y. Conditioning twice is on
    both observations.

    Args:
      denoiser: the prior's.
      likelihood: ``guide.linear``, ``guide.observed``, ``guide.interval``.
      method: ``guide.mmps()``, ``pigdm()``, ``tmpd()``, ``point()``, ``convolved()``.
      scale: w, a strength of guidance; weights correct it too.

    Returns:
      The denoiser. A call of it calls the wrapped one once and takes one or more products with
      the transpose of its derivative.

    Raises:
      TypeError: for a likelihood or a method that is none.

    Example:
      ``posterior = guide.conditioned(model, guide.linear(guide.mask(keep), y, 0.1), guide.mmps())``
    """
    if not isinstance(likelihood, Likelihood):
        raise TypeError(
            f"a likelihood has log_prob(x) and tilt(belief), got {type(likelihood).__name__}; try "
            "guide.linear(operator, y, noise)"
        )
    if not isinstance(method, Method):
        raise TypeError(f"a method has view(...), got {type(method).__name__}; try guide.mmps()")
    return Conditioned(denoiser, likelihood, method, scale)
