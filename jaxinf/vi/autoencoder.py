"""Amortised inference: encoders and decoders, whose examples are pairs of measures."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PyTree

from jaxinf.core import Key, Leaf, record, static
from jaxinf.vi.checks import check_least
from jaxinf.vi.families import GaussianFamily
from jaxinf.vi.iwae import iwae
from jaxinf.vi.likelihoods import BernoulliLikelihood
from jaxinf.vi.objective import Info
from jaxinf.vi.pair import Pair, pair


@record
class Joint:
    """log p(x, z) of one example x as a function of z, the prior being N(0, I)."""

    x: Leaf
    decoder: Leaf
    likelihood: Leaf
    decode: Callable[..., Any] = static()
    dim: int = static()

    def log_likelihood(self, z: Float[Array, " latent"]) -> Float[Array, ""]:
        """Return log p(x | z), in nats."""
        return self.likelihood.log_prob(self.decode(self.decoder, z), self.x)

    def log_prob(self, z: Float[Array, " latent"]) -> Float[Array, ""]:
        """Return log p(x, z)."""
        prior = -jnp.sum(jnp.square(z)) / 2 - self.dim * math.log(2 * math.pi) / 2
        return prior + self.log_likelihood(z)


@record
class Autoencoder:
    """An encoder and a decoder; see :func:`autoencoder`."""

    encoder: Leaf
    """Parameters, learnt."""
    decoder: Leaf
    likelihood: Leaf
    encode: Callable[..., Any] = static()
    decode: Callable[..., Any] = static()
    posterior: Callable[..., Any] = static()
    latent: int = static()

    def infer(self, x: Array) -> Any:
        """Return q(z | x), a family."""
        q = self.posterior(*self.encode(self.encoder, x))
        if q.dim != self.latent:
            raise ValueError(
                f"the encoder gives {q.dim} latent numbers, and the autoencoder has {self.latent}: "
                "encode one example into vectors of shape (latent,)."
            )
        return q

    def joint(self, x: Array) -> Joint:
        """Return log p(x, z) of one example."""
        return Joint(x, self.decoder, self.likelihood, self.decode, self.latent)

    def pair(self, x: Array) -> Pair:
        """Return p(x, z) and q(z | x) of one example, for any objective."""
        return pair(self.joint(x), self.infer(x))

    def reconstruct(self, key: Key, x: Array) -> Array:
        """Return E[x' | z] for z drawn from q(z | x)."""
        return self.likelihood.mean(self.decode(self.decoder, self.infer(x).sample(key)))

    def mean(self, z: Float[Array, " latent"]) -> Array:
        """Return E[x | z]."""
        return self.likelihood.mean(self.decode(self.decoder, z))

    def sample(self, key: Key) -> Array:
        """Draw x from the model."""
        inner, outer = jax.random.split(key)
        z = jax.random.normal(inner, (self.latent,))
        return self.likelihood.sample(outer, self.decode(self.decoder, z))


def independent(mean: Float[Array, " dim"], log_scale: Float[Array, " dim"]) -> GaussianFamily:
    """The Gaussian of independent numbers with a mean and logarithms of standard deviations.

    Args:
      mean: shape (dim,).
      log_scale: shape (dim,).

    Returns:
      The family.
    """
    return GaussianFamily(mean, log_scale, None, None)


def autoencoder(
    encode: Callable[[PyTree, Array], tuple[Array, ...]],
    decode: Callable[[PyTree, Array], Any],
    encoder: PyTree,
    decoder: PyTree,
    latent: int,
    *,
    likelihood: Any = None,
    posterior: Callable[..., Any] = independent,
) -> Autoencoder:
    r"""A latent Gaussian model of examples with an amortised Gaussian posterior.

    .. math:: p(z) = N(0, I), \quad p_\theta(x \mid z), \qquad
              q_\phi(z \mid x) = N(m_\phi(x), \mathrm{diag}(s_\phi(x))^2)

    An example's :meth:`~Autoencoder.pair` goes to every objective of this room: :func:`elbo`
    (estimator A, and without its score), :func:`analytic_elbo` (estimator B), :func:`iwae` (and
    doubly reparameterised), :func:`renyi`. Functions are known again when they are a module's.

    Args:
      encode: ``(encoder, x) -> arguments`` of the posterior for one example: a tuple, of mean and
        log scale, each (latent,), for the posterior by default.
      decode: ``(decoder, z) -> out`` for one latent vector: what the likelihood takes.
      encoder: parameters phi, a pytree of floats.
      decoder: parameters theta.
      latent: how many numbers z has.
      likelihood: :class:`BernoulliLikelihood` by default, :class:`GaussianLikelihood`, or one's
        own with ``log_prob(out, x)``, ``mean(out)`` and ``sample(key, out)``.
      posterior: a family from what the encoder gives: :func:`independent` numbers,
        or :class:`RankOne`, whose precision is a diagonal and an outer product.

    Returns:
      The autoencoder, whose parameters are its leaves.

    Raises:
      ValueError: for fewer than one latent number; at a call, for an encoder of another number
        and a decoder of another shape than the example's.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), eq. 9; D. J. Rezende,
      S. Mohamed and D. Wierstra, "Stochastic Backpropagation and Approximate Inference in Deep
      Generative Models" (2014), section 4.

    Example:
      ``vi.fit(key, vi.amortised(vi.iwae(5)), vi.autoencoder(encode, decode, phi, theta, 16), x)``
    """
    check_least(latent=latent)
    likelihood = BernoulliLikelihood() if likelihood is None else likelihood
    return Autoencoder(encoder, decoder, likelihood, encode, decode, posterior, latent)


@dataclass(frozen=True)
class Amortised:
    """See :func:`amortised`."""

    objective: Any

    def __call__(
        self, model: Autoencoder, key: Key, batch: Float[Array, "examples *shape"]
    ) -> tuple[Float[Array, ""], Info]:
        """Return the mean loss of a batch, the mean bound, and how many densities were bad."""
        keys = jax.random.split(key, len(batch))
        loss, info = jax.vmap(lambda key, x: self.objective(key, model.pair(x)))(keys, batch)
        return jnp.mean(loss), Info(jnp.mean(info.bound), jnp.sum(info.invalid))


def amortised(objective: Any) -> Amortised:
    r"""An objective's mean over a batch of examples, whose posteriors share an encoder.

    .. math:: \frac1M \sum_{i=1}^M L(\theta, \phi; x_i)

    Args:
      objective: of one example's pair: ``vi.elbo()``, ``vi.analytic_elbo()``, ``vi.iwae(5)``.

    Returns:
      ``(model, key, batch) -> (loss, info)``: a loss for :func:`fit` and for
      ``nets.training``; the batch has its examples on the leading axis.

    Reference:
      D. P. Kingma and M. Welling, "Auto-Encoding Variational Bayes" (2014), eq. 8, divided by N.
    """
    return Amortised(objective)


class Bounds(NamedTuple):
    """The importance-weighted bound of examples, in nats."""

    mean: Float[Array, ""]
    standard_error: Float[Array, ""]
    """Of the mean, by the spread of examples and draws."""
    each: Float[Array, " examples"]


def bounds(
    key: Key, model: Autoencoder, examples: Float[Array, "examples *shape"], draws: int
) -> Bounds:
    r"""The importance-weighted bound on each example's log-evidence, and its mean.

    .. math:: \log \frac1K \sum_{k=1}^K \frac{p(x, z_k)}{q(z_k \mid x)}, \qquad z_k \sim q(z \mid x)

    Args:
      key: a typed key.
      model: :func:`autoencoder`.
      examples: leading axis [examples].
      draws: K of each example: 1 for the evidence lower bound, many for the log-evidence.

    Returns:
      :class:`Bounds`; the standard error is NaN for one example.

    Raises:
      ValueError: for fewer than one draw.

    Reference:
      Y. Burda, R. Grosse and R. Salakhutdinov, "Importance weighted autoencoders" (2016), eq. 8.
    """
    objective = iwae(draws)
    keys = jax.random.split(key, len(examples))

    def one(held: tuple[Key, Array]) -> Array:
        return objective(held[0], model.pair(held[1]))[1].bound

    each = jax.lax.map(one, (keys, examples), batch_size=min(64, len(examples)))
    return Bounds(jnp.mean(each), jnp.std(each, ddof=1) / len(each) ** 0.5, each)
