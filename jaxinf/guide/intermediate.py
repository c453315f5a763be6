"""The reward of an unfinished example: at what its denoiser expects of the clean one."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxinf.core import Key, Leaf, record, static
from jaxinf.process.masked import uniform
from jaxinf.sampler import categorical

Reward = Callable[[Array], Array]
"""x_0 -> its reward; the condition is bound."""


class Unfinished(NamedTuple):
    """An example on its way, after a step."""

    x: Array
    s: Leaf
    """The time that the step went to."""
    info: Any
    """The step's."""
    denoise: Any
    """(x, t) -> the denoiser's value; the condition is bound."""
    process: Any
    """The process that is reversed."""


@runtime_checkable
class Intermediate(Protocol):
    """How an unfinished example is rewarded."""

    def __call__(self, key: Key, reward: Reward, at: Unfinished) -> Float[Array, ""]:
        """Return the reward of an unfinished example."""
        ...


@record
class Clean:
    """r(x_0) at the prediction that the step has made."""

    def __call__(self, key: Key, reward: Reward, at: Unfinished) -> Float[Array, ""]:
        """Return the reward of ``info.clean``."""
        if not hasattr(at.info, "clean"):
            raise TypeError(
                f"the stepper's {type(at.info).__name__} has no prediction 'clean' of x_0; for "
                "tokens pass intermediate=guide.drawn(4) or guide.likeliest"
            )
        return reward(at.info.clean)


@record
class Likeliest:
    """r(x_0) with each mask at its most probable token."""

    def __call__(self, key: Key, reward: Reward, at: Unfinished) -> Float[Array, ""]:
        """Return the reward of the filled example."""
        _check_tokens(at.process)
        tokens = jnp.argmax(at.denoise(at.x, at.s), axis=-1).astype(at.x.dtype)
        return reward(jnp.where(at.x == at.process.mask, tokens, at.x))


@record
class Drawn:
    """log (1/n) sum_i exp r(x_0^i) for x_0^i from the denoiser's law of each mask."""

    count: int = static()

    def __call__(self, key: Key, reward: Reward, at: Unfinished) -> Float[Array, ""]:
        """Return the reward of the draws."""
        _check_tokens(at.process)
        laws = jax.nn.log_softmax(at.denoise(at.x, at.s).astype(jnp.float32))

        def one(key: Key) -> Array:
            tokens = categorical(uniform(key, (2, *at.x.shape)), laws).astype(at.x.dtype)
            return reward(jnp.where(at.x == at.process.mask, tokens, at.x))

        rewards = jax.vmap(one)(jax.random.split(key, self.count))
        return jax.nn.logsumexp(rewards) - np.log(self.count)


clean = Clean()
likeliest = Likeliest()


def drawn(count: int = 4) -> Drawn:
    r"""Reward tokens by draws of the clean example.

    .. math:: r_k = \log \frac1n \sum_{i=1}^n e^{r(x_0^i)}, \qquad x_0^i \sim p_\theta(x_0 \mid x_s)

    with each mask drawn from the denoiser's law of it, independently of the others.

    Args:
      count: n, draws a reward; they share one call of the denoiser.

    Returns:
      An intermediate reward for :func:`steer`.

    Raises:
      ValueError: for fewer than one draw.

    Reference:
      R. Singhal et al., "A General Framework for Inference-time Scaling and Steering of Diffusion
      Models" (2025), section 3.2, rewards of many samples.
    """
    if not (isinstance(count, int | np.integer) and count >= 1):
        raise ValueError(f"count must be a whole number, at least 1, got {count!r}")
    return Drawn(int(count))


def _check_tokens(process: Any) -> None:
    """Raise unless the process masks tokens."""
    if not hasattr(process, "mask"):
        raise TypeError(
            f"masks are filled for a masking process, got {type(process).__name__}; "
            "intermediate=guide.clean takes a Gaussian stepper's prediction"
        )
