"""The logarithm of a normalising constant from both sides."""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, check_key


class Evidence(NamedTuple):
    """What a pair of measures says of log Z, in nats; standard errors are of one run."""

    elbo: Float[Array, ""]
    """E_q[log w], at most log Z."""
    elbo_error: Float[Array, ""]
    log_z: Float[Array, ""]
    """By importance weights."""
    log_z_error: Float[Array, ""]
    """By the delta method: too small where few weights count."""
    ess: Float[Array, ""]
    """Effective share of the draws, in (0, 1]."""
    eubo: Float[Array, ""] | None
    """E_p[log w], at least log Z; None without exact draws."""
    eubo_error: Float[Array, ""] | None
    reverse_log_z: Float[Array, ""] | None
    """-log E_p[1 / w], None without exact draws."""
    reverse_ess: Float[Array, ""] | None
    """Effective share of the paths that were drawn back."""
    invalid: Array
    """How many log weights were NaN or +inf, and counted as 0, and how many of paths drawn back
    were NaN, and counted as +inf: both bounds are still bounds."""
    values: PyTree
    """The draws, of paths their last positions; leading axis [draws]."""
    log_weights: Float[Array, " draws"]


def evidence(key: Key, measures: Any, draws: int = 2000, *, exact: PyTree = None) -> Evidence:
    r"""Bracket log Z.

    .. math:: E_q[\log w] \le \log Z \le E_p[\log w], \qquad w = p / q, \qquad E_q[w] = Z

    Args:
      key: a typed key.
      measures: :func:`path_measures`, or :func:`pair` (whose draws have one branch).
      draws: how many, two or more.
      exact: draws of the target with a leading axis, from which paths are drawn back; without them
        there is no upper bound.

    Returns:
      :class:`Evidence`.

    Raises:
      ValueError: for fewer than two draws.

    Reference:
      R. B. Grosse, Z. Ghahramani and R. P. Adams, "Sandwiching the marginal likelihood using
      bidirectional Monte Carlo" (2015), section 3.
    """
    check_key(key)
    if draws < 2:
        raise ValueError(f"draws must be at least 2, got {draws}.")
    return _evidence(key, measures, draws, exact)


@partial(jax.jit, static_argnames="draws")
def _evidence(key: Key, measures: Any, draws: int, exact: PyTree) -> Evidence:
    """See :func:`evidence`."""
    there, back = jax.random.split(key)
    found = jax.vmap(measures.draw)(jax.random.split(there, draws))
    log_w = (found.log_p - found.log_q)[:, 0]
    bad = jnp.isnan(log_w) | (log_w == jnp.inf)
    log_w = jnp.where(bad, -jnp.inf, log_w)
    log_z, error, share = _mean(log_w)
    elbo, elbo_error = jnp.mean(log_w), jnp.std(log_w, ddof=1) / jnp.sqrt(draws)
    values = jax.tree.map(lambda a: a[:, 0], found.values)
    if hasattr(measures, "backward"):
        ends = jax.tree.map(lambda a: a[:, -1], values)
        values = jax.vmap(measures.kernels.position)(ends)
    upper: tuple[Any, Any, Any, Any] = (None, None, None, None)
    if exact is not None:
        count = jax.tree.leaves(exact)[0].shape[0]
        log_r = _reverse(measures, jax.random.split(back, count), exact)
        lost = jnp.isnan(log_r)
        bad = jnp.concatenate([bad, lost])
        log_r = jnp.where(lost, jnp.inf, log_r)
        inverse, _, reverse_share = _mean(-log_r)
        spread = jnp.std(log_r, ddof=1) / jnp.sqrt(count)
        upper = jnp.mean(log_r), spread, -inverse, reverse_share
    invalid = jnp.sum(bad, dtype=jnp.int32)
    rest = *upper, invalid, values, log_w
    return Evidence(elbo, elbo_error, log_z, error, share, *rest)


def _reverse(measures: Any, keys: Any, exact: PyTree) -> Array:
    """Return the log weights of exact draws."""
    if hasattr(measures, "backward"):
        paths = jax.vmap(measures.backward)(keys, exact)
        return paths.log_p - paths.log_q
    log_p, log_q = jax.vmap(measures.evaluate)(exact)
    return log_p - log_q


def _mean(log_w: Array) -> tuple[Array, Array, Array]:
    """Return the log of the mean weight, its standard error and the effective share."""
    count = log_w.shape[0]
    total = jax.nn.logsumexp(log_w)
    shares = jnp.exp(log_w - total)
    ess = 1 / jnp.sum(jnp.square(shares))
    return total - jnp.log(count), jnp.sqrt(jnp.maximum(1 / ess - 1 / count, 0)), ess / count
