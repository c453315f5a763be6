"""Derivatives of a density as differences of two densities."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxinf.core import Key
from jaxinf.grad.strategy import Site, kind, parameters, plain, size


def _normal(key: Key, p: dict[str, Array]) -> dict[str, Any]:
    """By parameter: the factor, and draws of the positive and the negative part."""
    keys = jax.random.split(key, 4)
    loc, scale = p["loc"], p["scale"]
    z = jax.random.normal(keys[0], loc.shape, loc.dtype)
    ray = jnp.sqrt(2 * jax.random.exponential(keys[1], loc.shape, loc.dtype))
    three = jnp.sqrt(2 * jax.random.gamma(keys[2], 1.5, loc.shape, loc.dtype))
    sign = jax.random.rademacher(keys[3], loc.shape, loc.dtype)
    root = 1 / (scale * jnp.sqrt(2 * jnp.pi))
    return {
        "loc": (root, loc + scale * ray, loc - scale * ray),
        "scale": (1 / scale, loc + scale * sign * three, loc + scale * z),
    }


def _exponential(key: Key, p: dict[str, Array]) -> dict[str, Any]:
    rate = p["rate"]
    first, second = jax.random.exponential(key, (2, *rate.shape), rate.dtype)
    return {"rate": (1 / rate, first / rate, (first + second) / rate)}


def _bernoulli(key: Key, p: dict[str, Array]) -> dict[str, Any]:
    del key
    one = jnp.ones(p["probs"].shape, jnp.int32)
    return {"probs": (jnp.ones_like(p["probs"]), one, 0 * one)}


def _poisson(key: Key, p: dict[str, Array]) -> dict[str, Any]:
    k = jax.random.poisson(key, p["rate"])
    return {"rate": (jnp.ones_like(p["rate"]), k + 1, k)}


RULES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "Normal": (_normal, ("loc", "scale")),
    "Exponential": (_exponential, ("rate",)),
    "BernoulliProbs": (_bernoulli, ("probs",)),
    "BernoulliLogits": (_bernoulli, ("probs",)),
    "Poisson": (_poisson, ("rate",)),
}
"""By law: its decomposition, and the parameters that have one."""


@dataclass(frozen=True)
class MeasureValued:
    """See :func:`measure_valued`."""

    exhaustive = False

    def refusal(self, law: Any) -> str | None:
        """Return why the law has no such decomposition here."""
        if kind(law) not in RULES:
            return (
                f"{kind(law)} has no decomposition here, which there is for "
                f"{', '.join(RULES)}: take grad.score_function()"
            )
        return None

    def branches(self, law: Any) -> int:
        """Return 1, and two for each number and parameter."""
        return 1 + 2 * len(RULES[kind(law)][1]) * size(law)

    def draw(self, key: Key, law: Any, branch: Any) -> Site:
        """Return the draw, or in another branch one with a number of either part in it.

        The weight of such a branch is 0, and its gradient the derivative's share.
        """
        rule, names = RULES[kind(law)]
        draw, parts = jax.random.split(key)
        own = parameters(law) | _probabilities(law)
        value = jax.lax.stop_gradient(law.sample(draw))
        fixed = jax.lax.stop_gradient(own)
        found = jax.lax.stop_gradient(rule(parts, fixed))
        count = size(law)
        number = jnp.maximum(branch - 1, 0)
        which, place = number // (2 * count), number // 2 % count
        positive = number % 2 == 0
        factors, ups, downs, moving = (
            jnp.stack([a.ravel() for a in row])[which, place]
            for row in zip(
                *[(*found[name], own[name] - fixed[name]) for name in names], strict=True
            )
        )
        changed = value.ravel().at[place].set(jnp.where(positive, ups, downs).astype(value.dtype))
        slope = jnp.where(positive, 1, -1) * factors * moving
        main = branch == 0
        site = plain(jnp.where(main, value, changed.reshape(value.shape)))
        return site._replace(weight=jnp.where(main, 1.0, slope))


def _probabilities(law: Any) -> dict[str, Array]:
    """Return the probabilities of a law that holds logits."""
    held = parameters(law)
    return {"probs": jax.nn.sigmoid(held["logits"])} if "logits" in held else {}


def measure_valued() -> MeasureValued:
    r"""Differentiate by running what follows on draws of the derivative's two parts.

    .. math:: \partial_\theta q_\theta = c_\theta (q^+_\theta - q^-_\theta), \qquad
              \partial_\theta E[f(x)] = c_\theta\, (E_{q^+} f - E_{q^-} f)

    Unbiased for any f, also where it has no derivative; exact in a Bernoulli's probability. What
    follows the site is run twice for each number and parameter, with the same noise.

    Returns:
      The strategy, for normals, exponentials, Bernoullis and Poissons.

    Reference:
      S. Mohamed, M. Rosca, M. Figurnov and A. Mnih, "Monte Carlo gradient estimation in machine
      learning" (2020), section 6, table 1.
    """
    return MeasureValued()
