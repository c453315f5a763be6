"""How much draws of Markov chains are worth, inside compiled programs."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Draws = Float[Array, "chains draws *event"]
"""Draws of several chains; what is computed is computed for each number of an event."""


def ess(draws: Draws) -> Float[Array, "*event"]:
    r"""Effective number of draws for a mean.

    .. math:: \frac{M N}{\hat\tau}, \qquad \hat\tau = -1 + 2 \sum_t \hat\rho_t,

    with autocorrelations :math:`\hat\rho_t` of the halved chains against the variance between and
    within them, summed until a pair of them turns negative and made monotone (Geyer).

    Args:
      draws: at least four of each chain.

    Returns:
      One number for each of the event: that of the draws where they are constant, NaN where they
      are not finite.

    Raises:
      ValueError: for fewer than four draws.

    Reference:
      A. Vehtari et al., "Rank-normalization, folding, and localization: an improved R-hat",
      Bayesian Analysis 2021, equations (10) to (13).
    """
    return _for_each(_ess, draws)


def ess_bulk(draws: Draws) -> Float[Array, "*event"]:
    """Effective number of draws for the bulk of a law: of the draws' normal scores.

    See :func:`ess`; section 4.1 of its reference.
    """
    return _for_each(lambda x: _ess(_scores(x)), draws)


def ess_tail(draws: Draws) -> Float[Array, "*event"]:
    """Effective number of draws for the quantiles of 5 and 95 per cent, the lesser of the two.

    See :func:`ess`; section 4.3 of its reference.
    """
    edges = jnp.quantile(draws, jnp.array([0.05, 0.95], draws.dtype), axis=(0, 1))
    below = draws[None] <= edges[:, None, None]
    return jnp.min(jax.vmap(ess)(below.astype(draws.dtype)), axis=0)


def rhat(draws: Draws) -> Float[Array, "*event"]:
    """How much wider the chains are together than each alone, 1 at best.

    The greater of that of the halved chains' normal scores and that of their distances from the
    median; above 1.01 the chains have not mixed. Section 4.1 of :func:`ess`'s reference.
    """

    def one(x: Array) -> Array:
        folded = jnp.abs(x - jnp.median(x))
        return jnp.maximum(_rhat(_scores(x)), _rhat(_scores(folded)))

    return _for_each(one, draws)


def mcse(draws: Draws) -> Float[Array, "*event"]:
    """Standard error of the mean of draws: their deviation over the root of :func:`ess`."""
    return jnp.std(draws, axis=(0, 1), ddof=1) / jnp.sqrt(ess(draws))


def _for_each(function: Callable[[Array], Array], draws: Array) -> Array:
    """Map a function of one number's draws, in halved chains, over the event."""
    if draws.ndim < 2 or draws.shape[1] < 4:
        raise ValueError(
            f"draws must have shape (chains, draws, ...) with at least four draws, got "
            f"{draws.shape}. Of one chain pass draws[None]."
        )
    half = draws.shape[1] // 2  # the middle one of an odd number belongs to no half
    halves = jnp.concatenate([draws[:, :half], draws[:, -half:]])
    return jax.vmap(function, -1)(halves.reshape(*halves.shape[:2], -1)).reshape(draws.shape[2:])


def _scores(x: Array) -> Array:
    """Return the normal quantiles of the draws' ranks among all of them."""
    ranks = jax.scipy.stats.rankdata(x.reshape(-1), method="average").astype(x.dtype)
    return jax.scipy.special.ndtri((ranks - 0.375) / (x.size + 0.25)).reshape(x.shape)


def _spread(x: Array) -> tuple[Array, Array]:
    """Return the variance within chains, and that of all of them together."""
    draws = x.shape[1]
    within = jnp.mean(jnp.var(x, axis=1, ddof=1))
    return within, within * (draws - 1) / draws + jnp.var(jnp.mean(x, axis=1), ddof=1)


def _rhat(x: Array) -> Array:
    """Return the ratio of standard deviations, together over within."""
    within, together = _spread(x)
    return jnp.sqrt(together / within)


def _ess(x: Array) -> Array:
    """Return the effective number of draws of one number, from halved chains."""
    chains, draws = x.shape
    within, together = _spread(x)
    centred = x - jnp.mean(x, axis=1, keepdims=True)
    wave = jnp.fft.rfft(centred, 2 * draws, axis=1)
    covariance = jnp.fft.irfft(jnp.square(jnp.abs(wave)), 2 * draws, axis=1)[:, :draws] / draws
    rho = 1 - (within - jnp.mean(covariance, axis=0)) / together
    rho = rho.at[0].set(1.0)
    pairs = rho[: draws // 2 * 2].reshape(-1, 2)
    sums = pairs.sum(axis=1)
    # The last pairs are of too few draws to be told from noise.
    stop = (sums < 0) | (2 * jnp.arange(len(sums)) >= draws - 4)
    end = jnp.argmax(stop)
    taken = jnp.arange(len(sums)) < end
    monotone = jax.lax.cummin(jnp.where(taken, sums, jnp.inf))
    rest = jnp.maximum(pairs[end, 0], 0)
    tau = -1 + 2 * jnp.sum(jnp.where(taken, monotone, 0)) + rest
    total = chains * draws
    found = total / jnp.maximum(tau, 1 / jnp.log10(total))
    return jnp.where(jnp.max(x) == jnp.min(x), total, found)
