"""Structured variational auto-encoders: the prior of a chain, and potentials for what is seen."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from jaxinf import markov
from jaxinf.core import Finite, Full, Gaussian, Key, PyTree, first, is_concrete, record, rest
from jaxinf.core.types import Leaf
from jaxinf.vi.nodes import Nodes, monte_carlo

ONE_DRAW = monte_carlo(1)


@record
class Recognised:
    """An emission whose observations are the messages themselves."""

    def likelihood(self, y: Any) -> Any:
        """Return the potential."""
        return y

    def observe(self, prior: Any, y: Any) -> tuple[Any, Float[Array, ""]]:
        """Return the law proportional to a prior times the potential, and its log integral."""
        return y.weigh(prior)


@record
class StructuredPosterior:
    """See :func:`structured_posterior`; a family of paths, for :func:`jaxinf.vi.pair`."""

    prior: Leaf
    """A state space, its observations the potentials."""
    potentials: Leaf
    """[T] psi_t, those that were dropped equal to one."""
    filtered: Leaf
    marginals: Leaf
    """[T] laws of z_t under q."""

    @property
    def log_normaliser(self) -> Float[Array, ""]:
        """Return log Z, in nats."""
        return self.filtered.log_evidence[-1]

    def divergence(self) -> Float[Array, ""]:
        """Return KL(q, p) = sum_t E_q[log psi_t(z_t)] - log Z, in nats."""
        return jnp.sum(jax.vmap(_expected)(self.potentials, self.marginals)) - self.log_normaliser

    def sample(self, key: Key) -> PyTree:
        """Draw a path, [T] states; reparameterised where these are numbers."""
        return markov.sample_path(key, self.prior, self.filtered)

    def log_prob(self, path: PyTree) -> Float[Array, ""]:
        """Return log q of a path, in nats."""
        transition, steps, axis = self.prior.transition, None, None
        if isinstance(transition, markov.OverTime):
            steps, axis = transition.kernels, 0

        def move(now: Any, x: PyTree, y: PyTree) -> Array:
            return (transition if now is None else now).log_prob(x, y)

        earlier = jax.tree.map(lambda a: a[:-1], path)
        moves = jax.vmap(move, (axis, 0, 0))(steps, earlier, rest(path))
        weights = jax.vmap(lambda message, x: message(x))(self.potentials, path)
        start = self.prior.initial.log_prob(first(path))
        return start + jnp.sum(moves) + jnp.sum(weights) - self.log_normaliser

    def sample_and_log_prob(self, key: Key) -> tuple[PyTree, Float[Array, ""]]:
        """Draw a path; return it with log q."""
        path = self.sample(key)
        return path, self.log_prob(path)


class StructuredELBO(NamedTuple):
    """What :func:`structured_elbo` found, in nats."""

    bound: Float[Array, ""]
    log_likelihood: Float[Array, ""]
    """E_q of it, at the times that were observed."""
    divergence: Float[Array, ""]
    """KL(q, p)."""


def gaussian_potentials(
    means: Float[Array, "T d"], precisions: Float[Array, "T d"] | Float[Array, "T d d"]
) -> markov.Quadratic:
    r"""Gaussian potentials of a recognition network's outputs.

    .. math:: \psi_t(z) = \exp\bigl(-\tfrac12 (z - \mu_t)^\top \Lambda_t (z - \mu_t)\bigr)

    Args:
      means: mu, shape (T, d).
      precisions: Lambda, symmetric and positive semi-definite, shape (T, d, d), or its diagonals,
        shape (T, d); zeros say nothing.

    Returns:
      Messages with a leading axis T. Those of a linear-Gaussian emission are
      ``jax.vmap(emission.likelihood)(observations)``; a hidden Markov chain's are
      ``markov.FiniteMessage(log_values)`` with log values of shape (T, states).

    Raises:
      ValueError: for other shapes, and for concrete precisions that are not positive semi-definite.

    Reference:
      Y. Zhao and S. Linderman, "Revisiting structured variational autoencoders" (2023);
      M. Johnson et al., "Composing graphical models with neural networks for structured
      representations and fast inference" (2016), conjugate potentials.
    """
    means, precisions = jnp.asarray(means), jnp.asarray(precisions)
    if means.ndim != 2 or precisions.shape not in (means.shape, (*means.shape, means.shape[1])):
        raise ValueError(
            "means must have shape (T, d), and precisions (T, d) or (T, d, d), got "
            f"{means.shape} and {precisions.shape}."
        )
    if precisions.ndim == 2:
        precisions = jax.vmap(jnp.diag)(precisions)
    if is_concrete(precisions):
        slack = 10 * means.shape[1] * float(jnp.finfo(precisions.dtype).eps)
        slack *= float(jnp.max(jnp.abs(precisions)))
        skew = float(jnp.max(jnp.abs(precisions - jnp.swapaxes(precisions, 1, 2))))
        least = float(jnp.min(jnp.linalg.eigvalsh(precisions)))
        if not (skew <= slack and least >= -slack):
            raise ValueError(
                "precisions must be symmetric and positive semi-definite, got an asymmetry of "
                f"{skew} and a smallest eigenvalue {least}; L L' of a network's L is."
            )
    linear = jax.vmap(jnp.matmul)(precisions, means)
    return markov.Quadratic(-jax.vmap(jnp.vdot)(linear, means) / 2, linear, precisions)


def structured_posterior(
    initial: Gaussian | Finite,
    transition: Any,
    potentials: markov.Quadratic | markov.FiniteMessage,
    *,
    kept: Bool[Array, " T"] | None = None,
    block: int | None = None,
) -> StructuredPosterior:
    r"""The law of a chain weighted by conjugate potentials.

    .. math:: q(z) = \frac1Z\, p(z_0) \prod_{t \geq 1} p(z_t \mid z_{t-1}) \prod_t \psi_t(z_t)

    Its marginals, its normaliser and its paths come from exact message passing, Kalman's or the
    forward-backward algorithm, and are differentiable in the prior's numbers and the potentials.

    Args:
      initial: the prior's law of z_0, ``core.gaussian`` or ``core.finite``.
      transition: its kernel, ``markov.linear_gaussian`` or ``markov.finite``, or
        ``markov.over_time`` of T - 1 of them.
      potentials: :func:`gaussian_potentials` or ``markov.FiniteMessage``, a leading axis T.
      kept: which potentials count, all by default; the others are dropped, whatever they hold: at
        times without an observation, or at those held out for self-supervision.
      block: times that are taken together on parallel hardware, as in ``markov.filter``.

    Returns:
      :class:`StructuredPosterior`, with ``sample``, ``log_prob``, ``marginals``,
      ``log_normaliser`` and ``divergence``.

    Raises:
      TypeError: where law, kernel and potentials are not of one kind.
      ValueError: where lengths or sizes do not fit, or for a mask of another shape or type.

    Reference:
      Y. Zhao and S. Linderman, "Revisiting structured variational autoencoders" (2023).
      Deviations: natural gradients of the prior's parameters are left to the optimiser.
    """
    length = _check(initial, transition, potentials)
    if kept is not None:
        kept = _mask("kept", kept, length)
        potentials = jax.tree.map(lambda a: jnp.where(_along(kept, a), a, 0), potentials)
    if isinstance(initial, Gaussian) and isinstance(initial.covariance, Full):
        initial = Gaussian(initial.mean, initial.covariance.rooted)
    prior = markov.state_space(initial, transition, Recognised())
    filtered = markov.filter(prior, potentials, block=block)
    return StructuredPosterior(
        prior, potentials, filtered, markov.smooth(prior, filtered, block=block)
    )


def structured_elbo(
    key: Key,
    posterior: StructuredPosterior,
    log_likelihood: Callable[[Any, Any, Any], Array],
    params: PyTree,
    observations: PyTree,
    *,
    observed: Bool[Array, " T"] | None = None,
    nodes: Nodes = ONE_DRAW,
) -> StructuredELBO:
    r"""The evidence lower bound that keeps the prior's structure.

    .. math:: L = \sum_t E_{q(z_t)}[\log p_\theta(x_t \mid z_t)] - KL(q, p), \qquad
              KL(q, p) = \sum_t E_{q(z_t)}[\log \psi_t(z_t)] - \log Z

    The divergence is exact, the expectation is by nodes, or exact where states are finite. The
    bound is the log evidence where the potentials are the likelihoods.

    Args:
      key: a typed key, for nodes that are drawn.
      posterior: from :func:`structured_posterior`.
      log_likelihood: ``(params, z, x) -> log p(x | z)`` at one time, in nats.
      params: the decoder's.
      observations: x, a pytree of arrays with a leading axis T.
      observed: which of them are there, all by default; what stands at the others is not read. It
        need not be ``kept``: an observation whose potential was dropped must be predicted.
      nodes: :func:`jaxinf.vi.monte_carlo` (one draw a time by default), or
        :func:`jaxinf.vi.gauss_hermite`; not used where states are finite.

    Returns:
      :class:`StructuredELBO`, differentiable in everything that holds a number.

    Raises:
      ValueError: for observations of another length, a mask of another shape or type, and a log
        likelihood that is not one number.

    Reference:
      Y. Zhao and S. Linderman, "Revisiting structured variational autoencoders" (2023).
    """
    length = jax.tree.leaves(posterior.potentials)[0].shape[0]
    lengths = [jnp.shape(a)[:1] for a in jax.tree.leaves(observations)]
    if not lengths or set(lengths) != {(length,)}:
        raise ValueError(
            f"observations must have a leading axis of {length} times, as the potentials have; got "
            f"{lengths}."
        )
    observed = _mask("observed", jnp.ones(length, bool) if observed is None else observed, length)
    there = jnp.argmax(observed)
    filled = jax.tree.map(
        lambda a: jnp.where(_along(observed, a), a, jnp.asarray(a)[there][None]), observations
    )

    def one(key: Key, law: Any, x: PyTree) -> Array:
        return _mean(lambda z: log_likelihood(params, z, x), *_points(key, law, nodes))

    each = jax.vmap(one)(jax.random.split(key, length), posterior.marginals, filled)
    fit = jnp.sum(jnp.where(observed, each, 0.0))
    divergence = posterior.divergence()
    return StructuredELBO(fit - divergence, fit, divergence)


def _points(key: Key, law: Any, nodes: Nodes) -> tuple[Array, Array]:
    """Return points and weights for expectations under a marginal: [n, d] or all n states, [n]."""
    if isinstance(law, Finite):
        return jnp.arange(law.log_probs.size), jnp.exp(law.log_probs)
    white, weights = nodes(key, law.mean.size)
    return law.mean[None] + jax.vmap(law.covariance.sqrt)(white.astype(law.mean.dtype)), weights


def _mean(function: Callable[[Any], Array], points: Array, weights: Array) -> Float[Array, ""]:
    """Return the weighted mean of a log likelihood, points without weight left out."""
    values = jax.vmap(function)(points)
    if values.shape != weights.shape:
        raise ValueError(
            f"log_likelihood must give one number, got shape {values.shape[1:]}: sum over the "
            "numbers of an observation."
        )
    return jnp.sum(jnp.where(weights > 0, weights * values, 0.0))


def _expected(message: Any, law: Any) -> Float[Array, ""]:
    """Return E[log psi(z)] under a law of z."""
    if isinstance(law, Finite):
        probs = jnp.exp(law.log_probs)
        return jnp.sum(jnp.where(probs > 0, probs * message.log_values, 0.0))
    factor = law.covariance.factor
    return message(law.mean) - jnp.sum(factor * (message.precision @ factor)) / 2


def _along(mask: Array, a: Any) -> Array:
    """Return a mask over time with an array's number of axes."""
    return mask.reshape(-1, *[1] * (jnp.ndim(a) - 1))


def _mask(name: str, mask: Any, length: int) -> Bool[Array, " T"]:
    """Return a mask over time; raise for another."""
    mask = jnp.asarray(mask)
    if mask.shape != (length,) or mask.dtype != bool:
        raise ValueError(
            f"{name} must be a mask of shape {(length,)}, one flag a time, got {mask.dtype} of "
            f"shape {mask.shape}."
        )
    return mask


def _check(initial: Any, transition: Any, potentials: Any) -> int:
    """Return the number of times; raise for what does not fit."""
    moves = isinstance(transition, markov.OverTime)
    kernel = transition.kernels if moves else transition
    gaussian = (Gaussian, markov.LinearGaussian, markov.Quadratic)
    states = (Finite, markov.FiniteKernel, markov.FiniteMessage)
    given = (initial, kernel, potentials)
    kinds = [all(map(isinstance, given, wanted)) for wanted in (gaussian, states)]
    if not any(kinds):
        names = ", ".join(type(part).__name__ for part in given)
        raise TypeError(
            "law, transition and potentials must be Gaussian, linear-Gaussian and quadratic, or "
            f"finite all three; got {names}. Make potentials by vi.gaussian_potentials(means, "
            "precisions) or markov.FiniteMessage(log_values)."
        )
    size = jnp.size(initial.mean if kinds[0] else initial.log_probs)
    start, end = kernel.sizes
    values = potentials.linear if kinds[0] else potentials.log_values
    if start[1] != size or end[1] != size or jnp.shape(values)[1:] != (size,):
        raise ValueError(
            f"the law is over {size} {start[0]}, the transition from {start[1]} to {end[1]}, and "
            f"the potentials have shape {jnp.shape(values)}: wanted (T, {size})."
        )
    length = jnp.shape(values)[0]
    steps = jax.tree.leaves(kernel)[0].shape[0] if moves else length - 1
    if length < 1 or steps != length - 1:
        raise ValueError(f"{length} potentials need {length - 1} transitions, got {steps}.")
    return length
