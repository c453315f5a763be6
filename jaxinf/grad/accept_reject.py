"""Gammas and what is made of them, through the proposal that was accepted."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Key
from jaxinf.grad.strategy import Once, Site, kind, parameters, plain

LAWS = ("Gamma", "Beta", "Dirichlet")


@dataclass(frozen=True)
class AcceptReject(Once):
    """See :func:`accept_reject`."""

    boosts: int

    def refusal(self, law: Any) -> str | None:
        """Return why the law is not made of gammas."""
        if kind(law) in LAWS:
            return None
        return (
            f"{kind(law)} is not made of gammas, as {', '.join(LAWS)} are: take "
            "grad.reparameterised() or grad.score_function()"
        )

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return a draw that is differentiated through, and the score of what was accepted."""
        del branch
        p = parameters(law)
        if kind(law) == "Dirichlet":
            g, score = _gamma(key, p["concentration"], self.boosts)
            return plain(g / jnp.sum(g, axis=-1, keepdims=True))._replace(score=score)
        if kind(law) == "Beta":
            sides = jnp.stack([p["concentration1"], p["concentration0"]])
            (one, other), score = _gamma(key, sides, self.boosts)
            return plain(one / (one + other))._replace(score=score)
        g, score = _gamma(key, p["concentration"], self.boosts)
        return plain(g / p["rate"])._replace(score=score)


def _gamma(key: Key, a: Array, boosts: int) -> tuple[Array, Array]:
    """Draw gammas of rate 1; return them with the score of the accepted noise."""
    draw, uniform = jax.random.split(key)
    high = a + boosts
    scale = high - 1 / 3
    width = jnp.sqrt(9 * scale)
    z = jax.random.gamma(draw, jax.lax.stop_gradient(high), dtype=a.dtype)
    # an accepted draw is distributed as a gamma is, so its noise is found from one
    noise = jax.lax.stop_gradient((jnp.cbrt(z / scale) - 1) * width)
    stem = 1 + noise / width
    z = scale * stem**3
    log_target = (high - 1) * jnp.log(z) - z - jax.lax.lgamma(high)
    log_slope = jnp.log(3 * scale / width) + 2 * jnp.log(stem)
    score = jnp.sum(log_target + log_slope)
    if boosts:
        u = jax.random.uniform(uniform, (boosts, *a.shape), a.dtype, jnp.finfo(a.dtype).tiny)
        powers = a[None] + jnp.arange(boosts, dtype=a.dtype).reshape(-1, *[1] * a.ndim)
        z = z * jnp.exp(jnp.sum(jnp.log(u) / powers, axis=0))
    return z, score


def accept_reject(boosts: int = 1) -> AcceptReject:
    r"""Differentiate through a rejection sampler's accepted proposal (RSVI).

    A gamma is :math:`z = h(\epsilon, \alpha) = (\alpha - \tfrac13)
    (1 + \epsilon / \sqrt{9 \alpha - 3})^3` for accepted normal noise (Marsaglia and Tsang), whose
    law depends on the parameters:

    .. math:: \nabla E[f(z)] = E[\nabla f(h)] + E\Bigl[f(h)\, \nabla \log
              \frac{q(h(\epsilon, \theta); \theta)}{r(h(\epsilon, \theta); \theta)}\Bigr]

    With B boosts the sampler draws at concentration :math:`\alpha + B`, where nearly all proposals
    are accepted and the second term is small, and comes back by
    :math:`z_\alpha = z_{\alpha + B} \prod_{i=1}^B u_i^{1 / (\alpha + i - 1)}`.

    Args:
      boosts: B; 1 at least for concentrations below 1.

    Returns:
      The strategy, for gammas, betas and Dirichlets.

    Raises:
      ValueError: for a negative number of boosts.

    Reference:
      C. A. Naesseth, F. J. R. Ruiz, S. W. Linderman and D. M. Blei, "Reparameterization gradients
      through acceptance-rejection sampling algorithms" (2017), eqs. 7 to 9, section 4.
    """
    if boosts < 0:
        raise ValueError(f"boosts must be 0 or more, got {boosts}.")
    return AcceptReject(boosts)
