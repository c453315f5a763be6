"""Laws of an observation, given what a decoder puts out."""

import math
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxinf.core import Key, record


@runtime_checkable
class Likelihood(Protocol):
    """A law of one example x; ``out`` is what the decoder gives for one latent vector."""

    def log_prob(self, out: Any, x: Array) -> Float[Array, ""]:
        """Return log p(x | out), in nats."""
        ...

    def mean(self, out: Any) -> Array:
        """Return E[x | out]."""
        ...

    def sample(self, key: Key, out: Any) -> Array:
        """Draw x."""
        ...


@record
class BernoulliLikelihood:
    r"""Independent numbers 0 or 1, of which the decoder puts out the logits.

    .. math:: \log p(x \mid \ell) = \sum_i x_i \ell_i - \log(1 + e^{\ell_i})

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), appendix C.1.
    """

    def log_prob(self, out: Array, x: Array) -> Float[Array, ""]:
        """Return log p(x | out), in nats; the logits have x's shape."""
        _check(out, x)
        return jnp.sum(x * out - jax.nn.softplus(out))

    def mean(self, out: Array) -> Array:
        """Return the probabilities of 1."""
        return jax.nn.sigmoid(out)

    def sample(self, key: Key, out: Array) -> Array:
        """Draw x, as floats."""
        return jax.random.bernoulli(key, self.mean(out)).astype(out.dtype)


@record
class GaussianLikelihood:
    r"""Independent Gaussian numbers, of which the decoder puts out mean and log scale.

    .. math:: p(x \mid m, \ell) = N(x;\, m,\, \mathrm{diag}(e^{\ell})^2)

    The decoder puts out the two as a tuple; the log scale has the mean's shape, or () where all
    numbers share it.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), appendix C.2.
    """

    def log_prob(self, out: tuple[Array, Array], x: Array) -> Float[Array, ""]:
        """Return log p(x | out), in nats."""
        mean, log_scale = out
        _check(mean, x)
        z = (x - mean) * jnp.exp(-log_scale)
        return -jnp.sum(jnp.square(z) / 2 + log_scale + math.log(2 * math.pi) / 2)

    def mean(self, out: tuple[Array, Array]) -> Array:
        """Return the mean."""
        return out[0]

    def sample(self, key: Key, out: tuple[Array, Array]) -> Array:
        """Draw x."""
        mean, log_scale = out
        return mean + jnp.exp(log_scale) * jax.random.normal(key, mean.shape, mean.dtype)


def _check(out: Any, x: Any) -> None:
    """Raise where a decoder's output has another shape than the example."""
    if jnp.shape(out) != jnp.shape(x):
        raise ValueError(
            f"the decoder's output has shape {jnp.shape(out)} and the example {jnp.shape(x)}: "
            "decode one latent vector into one example's shape, batches come from jax.vmap."
        )
