"""Which terms of an objective are not finite."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxinf.core import Key
from jaxinf.vi.checks import check_least


def non_finite(key: Key, measures: Any, draws: int = 1000) -> dict[str, int]:
    """Count the draws at which a term of the log weight is NaN or infinite.

    A :class:`Fit` counts such steps and goes on from the last finite state; this says what they
    come from.

    Args:
      key: a typed key.
      measures: :func:`pair` or :func:`path_measures`.
      draws: of q.

    Returns:
      How often, by ``"p"`` and ``"q"``, or by ``"p: site"`` and ``"q: site"`` of NumPyro programs;
      ``"gradient"`` counts draws where all are finite and a derivative, in the measures' numbers or
      in the draw, is not. Terms that were finite at every draw are left out.

    Example:
      ``vi.non_finite(key, vi.pair(grad.annotate(model, x), grad.annotate(guide, x)))``
    """
    check_least(draws=draws)
    counts = _counts(key, measures, draws)
    return {name: int(count) for name, count in counts.items() if count}


@partial(jax.jit, static_argnames="draws")
def _counts(key: Key, measures: Any, draws: int) -> dict[str, Array]:
    """See :func:`non_finite`."""

    def slope(values: PyTree) -> Array:
        total = jax.grad(lambda m, values: sum(m.evaluate(values)), (0, 1), allow_int=True)
        grads = total(measures, values)
        floats = [a for a in jax.tree.leaves(grads) if jnp.issubdtype(a.dtype, jnp.floating)]
        return jnp.all(jnp.array([jnp.all(jnp.isfinite(a)) for a in floats]))

    def one(key: Key) -> dict[str, Array]:
        values = jax.tree.map(lambda a: a[0], measures.draw(key).values)
        fine = {name: jnp.isfinite(term) for name, term in _terms(measures, values).items()}
        whole = jnp.all(jnp.array(list(fine.values())))
        return fine | {"gradient": slope(values) | ~whole}

    found = jax.vmap(one)(jax.random.split(key, draws))
    return jax.tree.map(lambda a: jnp.sum(~a), found)


def _terms(measures: Any, values: PyTree) -> dict[str, Array]:
    """Return the terms of both log densities by name."""
    log_p, log_q = measures.evaluate(values)
    found = {}
    for name, total in (("p", log_p), ("q", log_q)):
        law = getattr(measures, name, None)
        if hasattr(law, "terms"):
            found |= {f"{name}: {site}": term for site, term in law.terms(values).items()}
        else:
            found[name] = total
    return found
