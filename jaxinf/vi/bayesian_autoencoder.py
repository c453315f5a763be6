"""Autoencoders whose decoder has a posterior of its own."""

import dataclasses
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float

from jaxinf.core import Diagonal, Gaussian, Key, Leaf, record
from jaxinf.vi.autoencoder import Amortised, Autoencoder, independent
from jaxinf.vi.checks import check_least, check_positive
from jaxinf.vi.families import GaussianFamily
from jaxinf.vi.objective import Info


@record
class BayesianAutoencoder:
    """See :func:`bayesian_autoencoder`."""

    model: Leaf
    """An :class:`Autoencoder` with the mean weights for decoder."""
    log_scale: Leaf
    """Of the decoder's weights, its pytree."""

    @property
    def weights(self) -> GaussianFamily:
        """The posterior of the decoder's parameters, as one vector."""
        flat = [ravel_pytree(tree)[0] for tree in (self.model.decoder, self.log_scale)]
        return independent(*flat)

    def draw(self, key: Key) -> tuple[Autoencoder, Float[Array, ""], Float[Array, ""]]:
        """Return an autoencoder with drawn weights, their log q and their log p."""
        theta, log_q = self.weights.sample_and_log_prob(key)
        drawn = dataclasses.replace(self.model, decoder=ravel_pytree(self.model.decoder)[1](theta))
        log_p = Gaussian(jnp.zeros_like(theta), Diagonal(jnp.ones((), theta.dtype)))
        return drawn, log_q, log_p.log_prob(theta)


def bayesian_autoencoder(model: Autoencoder, scale: Any = 0.05) -> BayesianAutoencoder:
    r"""An autoencoder with a Gaussian posterior of its decoder's parameters.

    .. math:: p(\theta) = N(0, I), \qquad q(\theta) = N(m, \mathrm{diag}(s)^2)

    Args:
      model: :func:`autoencoder`; its decoder's parameters are the means to start with.
      scale: standard deviations to start with.

    Returns:
      The record: its leaves are the encoder, the means and the log scales, all learnt.

    Raises:
      ValueError: for scales that are not positive.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), appendix F.
    """
    check_positive("scale", scale)
    spread = jax.tree.map(lambda a: jnp.broadcast_to(jnp.log(scale), a.shape), model.decoder)
    log_scale = jax.tree.map(lambda a, b: a.astype(b.dtype), spread, model.decoder)
    return BayesianAutoencoder(model, log_scale)


@dataclass(frozen=True)
class FullBayes:
    """See :func:`full_bayes`."""

    objective: Any
    examples: int
    draws: int

    def __call__(
        self, params: BayesianAutoencoder, key: Key, batch: Float[Array, "batch *shape"]
    ) -> tuple[Float[Array, ""], Info]:
        """Return minus the bound on the log-evidence of all examples, from a batch of them."""

        def one(key: Key) -> tuple[Array, Info]:
            outer, inner = jax.random.split(key)
            model, log_q, log_p = params.draw(outer)
            loss, info = Amortised(self.objective)(model, inner, batch)
            return self.examples * loss + log_q - log_p, info

        loss, info = jax.vmap(one)(jax.random.split(key, self.draws))
        loss = jnp.mean(loss)
        return loss, Info(jax.lax.stop_gradient(-loss), jnp.sum(info.invalid))


def full_bayes(objective: Any, examples: int, *, draws: int = 1) -> FullBayes:
    r"""The bound on the evidence of a data set, over latent numbers and the decoder's parameters.

    .. math:: L = \frac1K \sum_{k=1}^K \Bigl[\frac{N}{M} \sum_{i=1}^M L(\theta_k, \phi; x_i)
              + \log p(\theta_k) - \log q(\theta_k)\Bigr], \qquad \theta_k \sim q(\theta)

    It bounds :math:`\log p(x_1, \dots, x_N)` from below, and is unbiased for its mean where the
    batch is drawn uniformly.

    Args:
      objective: of one example's pair: ``vi.elbo()`` as in the paper, or ``vi.analytic_elbo()``.
      examples: N, of the whole data set; the batch has M.
      draws: K, of the parameters; a batch shares each.

    Returns:
      ``(bayesian, key, batch) -> (loss, info)``: a loss for :func:`fit`.

    Raises:
      ValueError: for fewer than one example or draw.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), appendix F.
    """
    check_least(examples=examples)
    check_least(draws=draws)
    return FullBayes(objective, examples, draws)
