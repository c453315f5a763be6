"""The masking process of tokens: each is replaced by the mask independently of the others."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from jaxinf.core import (
    Independent,
    Key,
    Leaf,
    Scalar,
    check_key,
    concretely,
    divide,
    is_concrete,
    record,
    static,
)
from jaxinf.process.schedules import Schedule, linear_interpolation


@record
class Masked:
    """The process; tokens are 0 ... vocabulary - 1, and the mask is the number ``vocabulary``.

    q(x_t | x_0) = keep(t) [x_t = x_0] + (1 - keep(t)) [x_t = mask] for every token.
    """

    schedule: Leaf
    vocabulary: int = static()

    @property
    def mask(self) -> int:
        """The token that stands for a mask."""
        return self.vocabulary

    @property
    def t_min(self) -> Leaf:
        """Earliest time at which every rate is finite."""
        return self.schedule.t_min

    @property
    def t_max(self) -> Leaf:
        """Latest time."""
        return self.schedule.t_max

    def keep(self, t: Scalar) -> Array:
        """Return the probability that a token is not masked at t."""
        return self.schedule.alpha(t)

    def transition(self, t: Scalar, s: Scalar) -> Array:
        """Return keep(s) / keep(t): how probably a token that is not masked at t is not at s > t.

        A mask stays one. Where keep(t) is 0 no token is left, and 0 is returned.
        """
        return divide(self.keep(s), self.keep(t))

    def rates(self, t: Scalar) -> tuple[Array, Array]:
        """Return (-keep' / keep, -keep' / (1 - keep)), the rates of masking and of revealing.

        The first is the forward process's, a token; the second the reverse process's, a mask, and
        the weight of a mask's cross-entropy in the bound on the likelihood. Per unit of time.
        """
        t = jnp.asarray(t)
        keep, rate = jax.jvp(self.keep, (t,), (jnp.ones_like(t),))
        return -rate / keep, -rate / (1 - keep)

    def sample(self, key: Key, x0: Int[Array, " length"], t: Scalar) -> Int[Array, " length"]:
        """Draw x_t given x_0, for one example."""
        check_key(key)
        if not jnp.issubdtype(x0.dtype, jnp.integer):
            raise TypeError(f"tokens must be integers, got {x0.dtype}; x0.astype(jnp.int32)")
        return self._masked(key, x0, self.keep(t))

    def renoise(
        self, noise: Independent, x: Int[Array, " length"], t: Scalar, s: Scalar
    ) -> Int[Array, " length"]:
        """Draw x_s given x_t for s > t, for one example."""
        return self._masked(noise.key_of(t, s), x, self.transition(t, s))

    def prior(self) -> "AllMasked":
        """Return the law from which samplers start: every token is a mask."""
        return AllMasked(self.vocabulary)

    def _masked(self, key: Key, x: Array, kept: Array) -> Array:
        return jnp.where(bernoulli(key, kept, x.shape), x, jnp.asarray(self.mask, x.dtype))


@record
class AllMasked:
    """The law of one outcome: masks everywhere."""

    mask: int = static()

    def sample(self, key: Key, shape: tuple[int, ...]) -> Int[Array, "..."]:
        """Return int32 masks of shape (batch, length); the key is checked and nothing drawn."""
        check_key(key)
        return jnp.full(shape, self.mask, jnp.int32)


def uniform(key: Key, shape: tuple[int, ...]) -> Float[Array, "..."]:
    """Draw uniform numbers in [0, 1) of full precision, float32.

    JAX's are multiples of 2^-23, so that events of probability 1e-6 come 5 % too often; of 64
    random bits the small numbers have all their digits too, and u < p is right to 2^-24 relatively.
    """
    high, low = jax.random.bits(key, (2, *shape), jnp.uint32).astype(jnp.float32)
    return jnp.minimum(high * np.float32(2.0**-32) + low * np.float32(2.0**-64), 1 - 2.0**-24)


def bernoulli(key: Key, probability: Scalar, shape: tuple[int, ...]) -> Array:
    """Draw events of a probability, however small; 0 never and 1 always."""
    return uniform(key, shape) < probability


def masked(vocabulary: int, schedule: Schedule | None = None) -> Masked:
    """The masking process: a token is replaced by the mask with probability 1 - alpha(t).

    q(x_t | x_0) = alpha(t) [x_t = x_0] + (1 - alpha(t)) [x_t = mask], independently for each of an
    example's tokens; from t to s > t a token survives with probability alpha(s) / alpha(t), and a
    mask stays a mask. Backwards, a mask is revealed between t and s < t with probability
    (alpha(s) - alpha(t)) / (1 - alpha(t)), and then is the clean token.

    Args:
      vocabulary: number of tokens V, at least 1. Tokens are 0 ... V - 1, the mask is V.
      schedule: whose ``alpha`` is the probability of being kept, in [0, 1] and falling; 1 - t by
        default, ``process.cosine()`` or ``process.variance_preserving(alpha)`` say. Where
        alpha(t_max) is above 0 the prior, all masks, is an approximation, as for Gaussians.

    Returns:
      The process, a pytree of the schedule's numbers, with ``prior()``, ``sample(key, x0, t)``,
      ``transition(t, s)`` and ``rates(t)``.

    Raises:
      TypeError: for something that is no schedule.
      ValueError: for a vocabulary below 1; where the numbers are concrete, for an alpha outside
        [0, 1], one that rises, or one that never falls.

    Reference:
      Simplified and Generalized Masked Diffusion for Discrete Data, Shi et al., 2024, section 2;
      Simple and Effective Masked Diffusion Language Models, Sahoo et al., 2024, section 3.
    """
    if not (isinstance(vocabulary, int | np.integer) and vocabulary >= 1):
        raise ValueError(f"vocabulary must be a whole number, at least 1, got {vocabulary!r}")
    schedule = linear_interpolation() if schedule is None else schedule
    if not hasattr(schedule, "alpha"):
        raise TypeError(
            f"a masking process is made from a schedule, got {type(schedule).__name__}; try "
            "process.masked(vocabulary, process.cosine())"
        )
    if is_concrete(schedule):
        _check_keep(schedule)
    return Masked(schedule, int(vocabulary))


def _check_keep(schedule: Schedule) -> None:
    """Raise unless alpha is a probability that falls."""
    times = np.linspace(0.0, float(schedule.t_max), 257)
    with concretely():
        keep = np.asarray(jax.vmap(schedule.alpha)(jnp.asarray(times)), np.float64)
    bad = ~((keep >= 0) & (keep <= 1))
    if bad.any():
        raise ValueError(
            f"alpha(t) must be a probability, and at t={times[bad][0]:.4g} it is {keep[bad][0]:.6g}"
        )
    if (np.diff(keep) > 4e-7).any() or not keep[-1] < keep[0]:
        raise ValueError(
            f"alpha(t) must fall, and it goes from {keep[0]:.6g} at t=0 to {keep[-1]:.6g} at "
            f"t={times[-1]:.4g}; process.linear_interpolation() and process.cosine() fall from 1 "
            "to 0"
        )
