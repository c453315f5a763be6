"""Categorical draws as rows of the identity: what NumPyro's distributions lack."""

from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@cache
def _law() -> Any:
    from numpyro.distributions import Distribution, constraints

    class OneHotCategorical(Distribution):
        """A categorical law on the rows of the identity."""

        arg_constraints = {"logits": constraints.real_vector}  # noqa: RUF012
        support = constraints.simplex
        has_enumerate_support = True
        is_discrete = True

        def __init__(self, logits: Any, *, validate_args: Any = None):
            self.logits = logits
            super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

        def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
            shape = sample_shape + self.batch_shape
            drawn = jax.random.categorical(key, self.logits, shape=shape)
            return jax.nn.one_hot(drawn, self.event_shape[0], dtype=self.logits.dtype)

        def log_prob(self, value: Any, intermediates: Any = None) -> Any:
            return jnp.sum(value * jax.nn.log_softmax(self.logits), axis=-1)

        def enumerate_support(self, expand: bool = True) -> Array:
            count = self.event_shape[0]
            values = jnp.eye(count).reshape(count, *[1] * len(self.batch_shape), count)
            shape = (count, *self.batch_shape, count)
            return jnp.broadcast_to(values, shape) if expand else values

    return OneHotCategorical


def one_hot_categorical(logits: Float[Array, "*batch classes"]) -> Any:
    r"""A NumPyro distribution of one-hot vectors.

    .. math:: P(x = e_k) = \mathrm{softmax}(\theta)_k

    Its log density :math:`x \cdot \log \mathrm{softmax}(\theta)` is linear in x, so that draws may
    stand where probabilities could: what :func:`straight_through` and :func:`reinmax` need.

    Args:
      logits: theta.

    Returns:
      The distribution, for ``numpyro.sample``; events have shape (classes,).
    """
    return _law()(jnp.asarray(logits))
