"""Markov jump processes on finitely many states: kernels, paths, and the way to a posterior."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxinf.core import Key, Scalar, record, runge_kutta
from jaxinf.core.types import Leaf
from jaxinf.markov.finite import FiniteKernel, FiniteMessage

SQUARINGS = 24
"""A kernel is made of one over a time so short that little happens, squared this often at most."""

TERMS = 18
"""Of the series of the short kernel: the Poisson law of rate one has less than 1e-16 beyond."""


class Path(NamedTuple):
    """A path that jumps: from ``times[k]`` on, until the next, the state is ``states[k]``."""

    times: Float[Array, " k"]
    """Ascending from the start; those that were not used stand at the end of time."""
    states: Int[Array, " k"]
    jumps: Int[Array, ""]
    complete: Bool[Array, ""]
    """Whether the end was reached within the number of jumps that there was room for."""


@record
class JumpProcess:
    """From state i to j at the rate ``rates[i, j]``; the diagonal is zero."""

    rates: Leaf

    def kernel(self, dt: Scalar) -> FiniteKernel:
        r"""Return the transition over a time, by uniformisation.

        .. math:: e^{Q s} = \sum_k \frac{(\lambda s)^k}{k!} e^{-\lambda s} (I + Q / \lambda)^k

        with the largest rate of leaving as lambda and s = dt / 2^m so short that lambda s is at
        most one, squared m times: all terms are positive, so that small probabilities keep their
        digits.
        """
        n = self.rates.shape[0]
        leaving = jnp.sum(self.rates, axis=1)
        fastest = jnp.maximum(jnp.max(leaving), jnp.finfo(self.rates.dtype).tiny)
        moves = (self.rates + jnp.diag(fastest - leaving)) / fastest
        mean = fastest * dt
        halvings = jnp.ceil(jnp.log2(jnp.maximum(mean, 1.0)))
        short = mean / 2**halvings
        term = jnp.exp(-short) * jnp.eye(n, dtype=self.rates.dtype)

        def add(carry: Any, k: Array) -> Any:
            term, total = carry
            term = term @ moves * (short / k)
            return (term, total + term), None

        ks = jnp.arange(1, TERMS + 1, dtype=self.rates.dtype)
        (_, matrix), _ = jax.lax.scan(add, (term, term), ks)

        def square(matrix: Array, k: Array) -> tuple[Array, None]:
            return jnp.where(k < halvings, matrix @ matrix, matrix), None

        matrix, _ = jax.lax.scan(square, matrix, jnp.arange(SQUARINGS))
        return FiniteKernel(jnp.log(matrix / jnp.sum(matrix, axis=1, keepdims=True)))

    def sample(self, key: Key, x: Int[Array, ""], end: Scalar, room: int) -> Path:
        """Draw a path from a state at time 0 until ``end``, with room for so many jumps."""
        leaving = jnp.sum(self.rates, axis=1)

        def jump(carry: Any, key: Key) -> Any:
            t, x = carry
            wait, where = jax.random.split(key)
            t = t + jax.random.exponential(wait, (), leaving.dtype) / leaving[x]
            new = jax.random.categorical(where, jnp.log(self.rates[x]))
            x = jnp.where(t < end, new, x)
            return (t, x), (jnp.minimum(t, end), x)

        start = jnp.zeros((), leaving.dtype), jnp.asarray(x)
        (last, _), (times, states) = jax.lax.scan(jump, start, jax.random.split(key, room))
        times = jnp.concatenate([jnp.zeros(1, times.dtype), times])
        states = jnp.concatenate([start[1][None], states.astype(start[1].dtype)])
        return Path(times, states, jnp.sum(times[1:] < end), last >= end)

    def log_prob(self, path: Path, end: Scalar) -> Float[Array, ""]:
        r"""Return the log density of a path given its start, about jumps at rate one.

        .. math:: \sum_k \log \lambda_{x_k x_{k+1}} - \int \sum_j \lambda_{x_t j}\, dt
        """
        leaving = jnp.sum(self.rates, axis=1)[path.states]
        stays = jnp.diff(path.times, append=jnp.asarray(end, path.times.dtype)[None])
        jumps = jnp.log(self.rates[path.states[:-1], path.states[1:]])
        jumped = jnp.where(path.times[1:] < end, jumps, 0.0)
        return jnp.sum(jumped) - jnp.sum(stays * leaving)


class JumpPosterior(NamedTuple):
    """What is known of a jump process's path: where it starts, and how it jumps then."""

    initial: Float[Array, " n"]
    """Probabilities at the first time."""
    rates: Callable[[Int[Array, ""], Float[Array, ""]], Float[Array, "n n"]]
    """Of (interval between observations, time): from state i to j; the diagonal is not read."""


def jump_process(rates: Array) -> JumpProcess:
    """A Markov jump process on finitely many states.

    Args:
      rates: shape (n, n), not negative, jumps from row to column in a unit of time; the diagonal is
        not read.

    Returns:
      The process: ``kernel(dt)`` is an exact kernel, ``sample`` draws paths.

    Raises:
      ValueError: for other shapes, and for concrete rates below zero.

    Reference: Jensen, "Markoff chains as an aid in the study of Markoff processes" (1953), for
    uniformisation.
    """
    rates = jnp.asarray(rates)
    if rates.ndim != 2 or rates.shape[0] != rates.shape[1]:
        raise ValueError(f"rates must have shape (states, states), got {rates.shape}.")
    rates = jnp.where(jnp.eye(rates.shape[0], dtype=bool), 0, rates)
    if not isinstance(rates, jax.core.Tracer) and not bool(jnp.all(rates >= 0)):
        raise ValueError(
            f"rates must not be negative, got a smallest one of {float(rates.min())}; the diagonal "
            "of a generator is left out by itself."
        )
    return JumpProcess(rates)


def generator(rates: Float[Array, "n n"]) -> Float[Array, "n n"]:
    """Return the matrix whose rows sum to zero for rates whose diagonal is not read."""
    away = jnp.where(jnp.eye(rates.shape[0], dtype=bool), 0, rates)
    return away - jnp.diag(jnp.sum(away, axis=1))


def jump_posterior(
    prior: JumpProcess,
    initial: Float[Array, " n"],
    times: Float[Array, " m"],
    log_likelihoods: Float[Array, "m n"],
) -> tuple[JumpPosterior, Float[Array, ""]]:
    r"""The exact posterior of a jump process observed at some times.

    Given what is seen it is a jump process again, its rates those of the prior tilted by the
    message h of what is still to come: :math:`\lambda_{ij}\, h_t(j) / h_t(i)`.

    Args:
      prior: the process.
      initial: probabilities of the state at the first time.
      times: of the observations, ascending.
      log_likelihoods: of what was seen then, in every state, in nats.

    Returns:
      The posterior and the log evidence.
    """
    kernels = jax.vmap(prior.kernel)(jnp.diff(times))
    last = FiniteMessage(log_likelihoods[-1])

    def back(later: FiniteMessage, slot: Any) -> tuple[FiniteMessage, FiniteMessage]:
        kernel, seen = slot
        return kernel.pullback(later).message.times(FiniteMessage(seen)), later

    first, after = jax.lax.scan(back, last, (kernels, log_likelihoods[:-1]), reverse=True)
    joint = jnp.log(initial) + first.log_values
    evidence = jax.nn.logsumexp(joint)

    def rates(i: Array, t: Array) -> Array:
        message = FiniteMessage(after.log_values[i])
        h = prior.kernel(times[i + 1] - t).pullback(message).message.log_values
        return prior.rates * jnp.exp(h[None, :] - h[:, None])

    return JumpPosterior(jnp.exp(joint - evidence), rates), evidence


def jump_elbo(
    prior: JumpProcess,
    initial: Float[Array, " n"],
    posterior: JumpPosterior,
    times: Float[Array, " m"],
    log_likelihoods: Float[Array, "m n"],
    *,
    steps: int = 16,
) -> Float[Array, ""]:
    r"""The evidence lower bound of a jump process's posterior.

    .. math:: \sum_i E_{q_{t_i}} \log g_i(z) - KL(q_0, p_0) - \int \sum_z q_t(z) \sum_{z' \neq z}
              \Bigl[ \mu \log \frac{\mu}{\lambda} - \mu + \lambda \Bigr] dt, \qquad
              \dot q_t = q_t M_t

    with mu the posterior's rates from z to z' at t, lambda the prior's, and M the generator of mu:
    the marginals come from the master equation, integrated together with the cost by the classical
    fourth-order method. It is the log evidence at :func:`jump_posterior`.

    Args:
      prior: the process.
      initial: probabilities of the state at the first time.
      posterior: the first state's probabilities, and rates of (interval, t): from networks say.
      times: of the observations, ascending.
      log_likelihoods: of what was seen then, in every state, in nats.
      steps: of the integrator between two observations.

    Returns:
      The bound, in nats.

    Raises:
      ValueError: where no step is taken.

    Reference: Seifner and Sanchez, "Neural Markov Jump Processes" (2023).
    """
    if steps < 1:
        raise ValueError(f"steps between two observations must be at least 1, got {steps}.")
    off = ~jnp.eye(initial.size, dtype=bool)

    def slope(i: Array, t: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        q, _ = state
        rates = posterior.rates(i, t)
        ratio = jnp.where(off, divide_logs(rates, prior.rates), 0.0)
        cost = jnp.where(off, rates * ratio - rates + prior.rates, 0.0)
        return q @ generator(rates), q @ jnp.sum(cost, axis=1)

    def interval(state: tuple[Array, Array], slot: Any) -> Any:
        i, start, end = slot
        grid = jnp.linspace(start, end, steps + 1)
        state = runge_kutta(lambda t, y: slope(i, t, y), state, grid)
        return state, state[0]

    start = posterior.initial, jnp.zeros((), times.dtype)
    slots = jnp.arange(times.size - 1), times[:-1], times[1:]
    (_, cost), later = jax.lax.scan(interval, start, slots)
    marginals = jnp.concatenate([posterior.initial[None], later])
    seen = jnp.sum(jnp.where(marginals > 0, marginals * log_likelihoods, 0.0))
    first = jnp.sum(jax.scipy.special.rel_entr(posterior.initial, initial))
    return seen - first - cost


def divide_logs(a: Array, b: Array) -> Array:
    """Return log a - log b, zero where a is zero, without NaN in its derivative."""
    there = a > 0
    safe = jnp.log(jnp.where(there, a, 1.0)) - jnp.log(jnp.where(there, b, 1.0))
    return jnp.where(there, safe, 0.0)
