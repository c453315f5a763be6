"""Diffusion posterior sampling: steps down the residual of the predicted clean example."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Leaf, Noise, Scalar, is_concrete, record, root
from jaxinf.sampler import AnyStepper, Denoise
from jaxinf.sampler.stepper import Wrapper, advance


@record
class DPS(Wrapper):
    """The wrapped step, then x_s <- x_s - step grad_{x_t} ||y - A(D(x_t))||; see :func:`dps`."""

    stepper: Leaf
    likelihood: Leaf
    length: Leaf
    weights: Leaf
    penalty: Leaf

    def step(
        self, denoise: Denoise, noise: Noise, state: Any, t: Scalar, s: Scalar, row: Any = None
    ) -> tuple[Any, Any]:
        """Go from t to s and down the residual's norm."""

        def move(x: Array) -> tuple[Array, Any]:
            here = state._replace(x=x)
            new, info = advance(self.stepper, denoise, noise, here, t, s, row)
            return info.clean, (new, info)

        clean, back, (new, info) = jax.vjp(move, state.x, has_aux=True)
        (gradient,) = back(jax.grad(self.distance)(clean))
        x = new.x - (self.length * gradient).astype(new.x.dtype)
        return new._replace(x=x), info

    def distance(self, clean: Array) -> Float[Array, ""]:
        """Return the norm of what a clean example leaves of the observation, and the penalty."""
        r = self.likelihood.residual(clean)
        norm = root(jnp.sum(self.weights * jnp.square(r)))
        return norm + jnp.sum(self.penalty * jnp.abs(clean))


def dps(stepper: AnyStepper, likelihood: Any, *, length: Scalar = 1.0, weights: Any = 1.0) -> DPS:
    r"""Diffusion posterior sampling's algorithm: any stepper, then a step down the residual.

    .. math:: x_s = x_s' - \zeta \nabla_{x_t} \| y - A(D(x_t)) \|_W, \quad
              \|r\|_W^2 = \sum_i W_i r_i^2

    The gradient is that of the norm, as in the authors' program, so a step's length does not depend
    on the residual's; by the paper's equation 16 and appendix, zeta_t grad of the square with
    zeta_t = zeta' / norm, zeta is 2 zeta'. It is a method of optimisation as much as of sampling:
    its law has no claim to be the posterior. ``guide.conditioned`` with :func:`guide.point` takes
    the gradient of the log density itself, and may be weighed.

    Args:
      stepper: what goes from t to s: ``sampler.ancestral(process)`` is the paper's.
      likelihood: with a residual: ``guide.linear``, ``guide.observed``.
      length: zeta, positive.
      weights: W, a number or of y's shape: 1 is the paper's form for Gaussian noise, 1 / (2 y) that
        for Poisson's counts.

    Returns:
      The stepper, for ``sampler.sample`` with the prior's denoiser. It calls the denoiser as often
      as the wrapped one, with one product with its derivative's transpose. A length too
      large leaves samples about as far from the data as it is long.

    Raises:
      TypeError: for a likelihood without a residual.
      ValueError: for a length that is not positive or weights that are negative.

    Reference:
      Diffusion Posterior Sampling for General Noisy Inverse Problems, Chung et al., 2023,
      algorithm 1 and equation 16.

    Example:
      ``sampler.sample(key, guide.dps(sampler.ancestral(p), likelihood), model, plan, x_T)``
    """
    if not hasattr(likelihood, "residual"):
        raise TypeError(
            f"{type(likelihood).__name__} has no residual(x); take guide.linear or guide.observed, "
            "or guide.conditioned with guide.point() for any density"
        )
    if is_concrete(length) and not float(length) > 0:
        raise ValueError(f"length must be positive, got {length}; the paper's are 0.1 to 1")
    if is_concrete(weights) and not bool(jnp.all(jnp.asarray(weights) >= 0)):
        raise ValueError(f"weights must not be negative, got {weights}; counts have 1 / (2 y)")
    return DPS(stepper, likelihood, length, jnp.asarray(weights, float), jnp.zeros(()))
