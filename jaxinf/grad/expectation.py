"""Expectations whose derivative is an estimate of the expectation's derivative."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, check_key
from jaxinf.grad.annotate import Annotated, annotate
from jaxinf.grad.strategy import Strategy


def averaged(costs: Float[Array, "draws branches"], draw: Any) -> Float[Array, ""]:
    r"""Return the mean cost of draws, with the estimator for derivative.

    .. math:: \frac1K \sum_{k, b} w_{kb} c_{kb}, \qquad
              \nabla = \frac1K \sum_{k, b} \nabla (w_{kb} c_{kb})
              + (w_{kb} c_{kb} - \beta_{kb}) \nabla s_{kb}, \qquad
              \beta_{kb} = \frac{1}{K - 1} \sum_{j \ne k} w_{jb} c_{jb}

    Args:
      costs: what each draw costs in each branch.
      draw: with ``weight`` w and ``score`` s, leading axes [draws, branches]: :class:`Draw`, or a
        pair's draw.
    """
    weighed = draw.weight * costs
    if draw.score is None:
        return jnp.sum(weighed) / costs.shape[0]
    fixed = jax.lax.stop_gradient(weighed)
    count = costs.shape[0]
    others = (jnp.sum(fixed, axis=0, keepdims=True) - fixed) / max(count - 1, 1)
    scores = draw.score - jax.lax.stop_gradient(draw.score)
    return jnp.sum(weighed + scores * (fixed - others)) / count


def reduced(
    reduce: Callable[[Any], Any], log_weights: Float[Array, " draws"], draw: Any
) -> Float[Array, ""]:
    r"""Return a function of several draws' log-weights, with the estimator for derivative.

    .. math:: L(\ell_1, \dots, \ell_K), \qquad \nabla = \nabla L
              + \sum_k \bigl(L - L|_{\ell_k = \mathrm{mean}_{j \ne k} \ell_j}\bigr) \nabla s_k

    For means it is :func:`averaged`; for logarithms of means, VIMCO.

    Args:
      reduce: L, of [draws] to one number.
      log_weights: the draws' own.
      draw: with one branch, leading axes [draws, 1].

    Raises:
      ValueError: where a site has several branches.
    """
    if draw.weight.shape[1] > 1:
        raise ValueError(
            "a bound that is no mean over draws cannot have sites with several branches "
            "(enumeration, measure_valued): give those sites score_function(), or take vi.elbo()."
        )
    if draw.score is None:
        return reduce(log_weights)
    value, fixed = reduce(log_weights), jax.lax.stop_gradient(log_weights)
    count = fixed.shape[0]
    if count == 1:
        left = jnp.zeros(1)
    else:
        mean = (jnp.sum(fixed) - fixed) / (count - 1)
        replaced = jnp.where(jnp.eye(count, dtype=bool), mean[:, None], fixed[None])
        left = jax.vmap(reduce)(replaced)
    scores = draw.score[:, 0] - jax.lax.stop_gradient(draw.score[:, 0])
    return value + jnp.sum(scores * (jax.lax.stop_gradient(value) - left))


def expectation(
    key: Key,
    law: Any,
    function: Callable[[Any], Any],
    *,
    strategy: Strategy | None = None,
    draws: int = 1,
) -> Float[Array, ""]:
    r"""Estimate E[f(x)] by a number whose derivative estimates the derivative.

    The law's parameters are differentiated by its strategies, those of f as usual:
    ``jax.grad(lambda theta: grad.expectation(key, dist.Poisson(theta), f,
    strategy=grad.measure_valued()))``.

    Args:
      key: a typed key.
      law: :func:`annotate`'s, or a NumPyro distribution.
      function: f, of one draw (a program's values by name) to one number.
      strategy: of a distribution; :func:`reparameterised` by default.
      draws: how many; with two or more each has the mean of the others as its baseline.

    Returns:
      The mean over draws.

    Raises:
      ValueError: for fewer than one draw, and where a site cannot have its strategy.
    """
    check_key(key)
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}.")
    single = not isinstance(law, Annotated)
    if single:
        chosen = {} if strategy is None else {"x": strategy}
        law = annotate(_single, law, strategies=chosen)
    elif strategy is not None:
        raise ValueError("the law is annotated already: leave strategy= out.")

    def cost(values: PyTree) -> Array:
        return jnp.asarray(function(values["x"] if single else values))

    draw = jax.vmap(law.draw)(jax.random.split(key, draws))
    costs = jax.vmap(jax.vmap(cost))(draw.values)
    if costs.ndim != 2:
        raise ValueError(f"f must return one number, got shape {costs.shape[2:]}.")
    return averaged(costs.astype(draw.weight.dtype), draw)


def _single(law: Any) -> None:
    """Draw from one distribution."""
    import numpyro

    numpyro.sample("x", law)
