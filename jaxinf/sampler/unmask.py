"""Revealing the masks of a token process, by two draws that are exact at small probabilities."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Independent, Leaf, Noise, Scalar, record
from jaxinf.process.masked import Masked, uniform
from jaxinf.sampler.stepper import Denoise, State


class UnmaskInfo(NamedTuple):
    """What a step tells."""

    revealed: Bool[Array, " length"]
    """Which tokens were revealed in it."""


@record
class Unmask:
    """A mask at t is revealed at s with probability (keep(s) - keep(t)) / (1 - keep(t))."""

    process: Leaf

    def init(self, x: Array) -> State:
        """Return the state at the start."""
        return State(x)

    def table(self, times: Array) -> Array:
        """Return each step's probability of revealing a mask."""
        return jax.vmap(lambda t, s: reveal_probability(self.process, t, s))(times[:-1], times[1:])

    def step(
        self, denoise: Denoise, noise: Noise, state: State, t: Scalar, s: Scalar, row: Scalar
    ) -> tuple[State, UnmaskInfo]:
        """Go from t to s."""
        if not isinstance(noise, Independent):
            raise TypeError(
                f"tokens are not drawn from {type(noise).__name__}; leave sampler.sample's noise "
                "at None, and increments are independent"
            )
        x = state.x
        logits = denoise(x, t)
        self._check(x, logits)
        laws = jax.nn.log_softmax(logits.astype(jnp.float32))
        sound = ~jnp.any(jnp.isnan(laws), axis=-1)
        u = uniform(noise.key_of(t, s), (3, *x.shape))
        revealed = (x == self.process.mask) & (u[0] < row) & sound
        tokens = categorical(u[1:], laws)
        return State(jnp.where(revealed, tokens.astype(x.dtype), x)), UnmaskInfo(revealed)

    def calls(self, t: float, s: float) -> int:
        """One call a step."""
        return 1

    def _check(self, x: Array, logits: Array) -> None:
        if logits.shape != (*x.shape, self.process.vocabulary):
            raise ValueError(
                "the denoiser must return one example's logits of shape "
                f"{(*x.shape, self.process.vocabulary)}, without the mask, it returned "
                f"{logits.shape}"
            )


def reveal_probability(process: Masked, t: Scalar, s: Scalar) -> Float[Array, ""]:
    """Return the probability that a mask at t is revealed at s < t.

    (keep(s) - keep(t)) / (1 - keep(t)); 1 where s is 0 and keep(0) is 1.

    Args:
      process: the masking process.
      t: shape (), a time with keep(t) < 1.
      s: shape (), an earlier time.

    Returns:
      Shape (), in [0, 1] for s < t; a step back to noise makes no use of it.

    Reference:
      Simplified and Generalized Masked Diffusion for Discrete Data, Shi et al., 2024, section 2;
      Simple and Effective Masked Diffusion Language Models, Sahoo et al., 2024, equation 7.
    """
    keep = process.keep(t)
    return (process.keep(s) - keep) / (1 - keep)


def categorical(
    u: Float[Array, "2 *shape"], log_probabilities: Float[Array, "*shape n"]
) -> Int[Array, "*shape"]:
    """Draw from categorical laws by inverting their distribution functions, in two levels.

    A block of about sqrt(n) outcomes is drawn by its weight, then an outcome within the block, each
    by a uniform of full precision. Sums are over sqrt(n) terms, so each probability is right to
    sqrt(n) machine epsilons of its block's, where one float32 sum over all n loses outcomes below
    1e-7. Four words of randomness a draw, against n for adding Gumbel noise.

    Args:
      u: two independent uniforms in [0, 1) a draw, shape (2, ...).
      log_probabilities: shape (..., n), up to a constant for each law; -inf is never drawn.

    Returns:
      int32 of shape (...), in 0 ... n - 1.
    """
    *shape, n = log_probabilities.shape
    width = math.isqrt(n - 1) + 1
    weights = jnp.exp(log_probabilities - jnp.max(log_probabilities, axis=-1, keepdims=True))
    spare = [(0, 0)] * len(shape) + [(0, -n % width)]
    blocks = jnp.pad(weights, spare).reshape(*shape, -1, width)
    block = _inverted(jnp.sum(blocks, axis=-1), u[0])
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    return block * width + _inverted(inside, u[1])


def _inverted(weights: Array, u: Array) -> Array:
    """Return the first outcome whose cumulative share exceeds u; never one of weight 0."""
    sums, positive = jnp.cumsum(weights, axis=-1), weights > 0
    ahead = (sums > (u * sums[..., -1])[..., None]) & positive
    last = weights.shape[-1] - 1 - jnp.argmax(positive[..., ::-1], axis=-1)
    found = jnp.argmax(ahead, axis=-1)
    return jnp.where(jnp.any(ahead, axis=-1), found, last).astype(jnp.int32)


def unmask(process: Masked) -> Unmask:
    """The sampler of a masking process.

    From t to s each mask is revealed with probability (keep(s) - keep(t)) / (1 - keep(t)),
    independently, and is then drawn from the denoiser's law of that token; what is revealed stays.
    With the true conditional laws the output's law has an error of order 1 / steps, since tokens
    that are revealed in one step are drawn independently of each other; one token at a time has
    none.

    The two draws are separate, and each is exact at small probabilities: one draw among the tokens
    and the mask by Gumbel noise in float32 reveals at the wrong rate where that is small, and draws
    the probable tokens too often.

    Args:
      process: ``process.masked(vocabulary)``. ``denoiser(x, t, cond)`` takes one example of tokens,
        int32 of shape (length,), the mask being the number ``vocabulary``, and returns logits of
        shape (length, vocabulary), in which the mask has no place; log-probabilities are logits,
        since the sampler takes ``log_softmax`` of them. Only those at masks are used; a mask whose
        logits are not numbers stays a mask.

    Returns:
      The stepper, with as ``info`` which tokens each step revealed. It starts from
      ``process.prior().sample(key, (batch, length))``; a plan that rises masks again.

    Raises:
      TypeError: for a process that is not a masking process.

    Reference:
      Simplified and Generalized Masked Diffusion for Discrete Data, Shi et al., 2024, algorithm 2;
      the bias of float32 Gumbel noise: Masked Diffusion Models are Secretly Time-Agnostic Masked
      Models and Exploit Inaccurate Categorical Sampling, Zheng et al., 2024, section 5.
    """
    if not hasattr(process, "keep"):
        raise TypeError(
            f"unmask reverses a masking process, got {type(process).__name__}; make one with "
            "process.masked(vocabulary)"
        )
    return Unmask(process)
