"""Particle filters of state spaces: bootstrap, locally optimal, guided, auxiliary."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from jaxinf.core import Key, Leaf, Scalar, check_key, first, record, rest
from jaxinf.markov import StateSpace
from jaxinf.markov.state_space import along, at, check_observations
from jaxinf.smc.driver import History, Run, Weighted, run
from jaxinf.smc.population import check_share
from jaxinf.smc.proposal import From, Proposal, View, bootstrap, move, views
from jaxinf.smc.resampling import Scheme, systematic


def particle_filter(
    key: Key,
    model: StateSpace,
    observations: PyTree,
    *,
    observed: Bool[Array, " T"] | None = None,
    proposal: Proposal | None = None,
    particles: int = 1000,
    resample: Scheme = systematic,
    threshold: Scalar = 0.5,
    history: bool = False,
) -> Run:
    r"""Filter a state space with particles.

    .. math:: w_t = \frac{k_t(x_t \mid x_{t-1})}{q_t(x_t \mid x_{t-1})}\, g_t(y_t \mid x_t)\,
              \frac{\eta_t(x_t)}{\eta_{t-1}(x_{t-1})}

    with the proposal's law q and look-ahead eta, which is 1 at the end. The estimate of the
    evidence is unbiased for every proposal and every scheme but ``metropolis``. Compiled once for
    a model's and a proposal's kind and shapes; composes under ``jit`` and ``vmap``, and with a mesh
    in force, as :func:`run`.

    Args:
      key: a typed key.
      model: ``markov.state_space(initial, transition, emission)``.
      observations: a leading axis T of time.
      observed: which of them are there; all by default. What stands at the others is not read as an
        observation, but must be finite.
      proposal: :func:`bootstrap`, the default, :func:`optimal`, :func:`guided` or
        :func:`auxiliary`.
      particles: how many, two or more.
      resample: the scheme.
      threshold: the share of effective particles below which they are resampled; 1 always.
      history: whether all times' particles are kept.

    Returns:
      :class:`Run`, with T rows of info and history. The population at the end follows the law of
      the last state given all observations. The history's weights are without the look-ahead, so
      that its row t follows the law of x_t given the observations until t. Where all weights became
      0 the log-evidence is -inf, and ``info.alive`` says from when on.

    Raises:
      TypeError: where the model's kernels lack what the proposal needs.
      ValueError: for a mask or messages of another length, fewer than two particles, and a
        threshold outside [0, 1].

    Reference:
      N. Chopin and O. Papaspiliopoulos, "An Introduction to Sequential Monte Carlo", 2020.
    """
    check_key(key)
    check_share("threshold", threshold)
    if particles < 2:
        raise ValueError(f"particles must be at least 2, got {particles}.")
    observations, observed = check_observations(observations, observed)
    proposal = bootstrap() if proposal is None else proposal
    return _filter(
        key, model, observations, observed, proposal, particles, resample, threshold, history
    )


@record
class _Chain:
    """A state space under a proposal as a Feynman-Kac model; particles hold their look-ahead."""

    model: Leaf
    proposal: Leaf
    first: Leaf

    def init(self, key: Key) -> Weighted:
        """Draw and weigh a first state."""
        start = From(self.model.initial)
        return Weighted(*move(key, self.model, self.proposal, start, (None, 0.0), self.first))

    def step(self, key: Key, particle: Any, inputs: tuple[Any, View]) -> tuple[Any, Array]:
        """Move and weigh."""
        transition, view = inputs
        kernel = at(self.model.transition, transition)
        return move(key, self.model, self.proposal, kernel, particle, view)


@partial(jax.jit, static_argnames=("particles", "resample", "history"))
def _filter(
    key: Key,
    model: Any,
    observations: PyTree,
    observed: Array,
    proposal: Any,
    particles: int,
    resample: Scheme,
    threshold: Scalar,
    history: bool,
) -> Run:
    """See :func:`particle_filter`."""
    seen = views(model, proposal, observations, observed)
    chain = _Chain(model, proposal, first(seen))
    inputs = along(model.transition), rest(seen)
    found = run(key, chain, inputs, particles=particles, resample=resample, threshold=threshold,
                history=history)  # fmt: skip
    people = found.population
    bare = dataclasses.replace(people, particles=people.particles[0])
    return found._replace(
        population=bare, history=None if found.history is None else _filtering(found.history)
    )


def _filtering(history: History) -> History:
    """Return the history with the look-ahead taken out of particles and weights."""
    x, future = history.particles
    log_weights = jnp.where(history.log_weights > -jnp.inf, history.log_weights - future, -jnp.inf)
    total = jax.nn.logsumexp(log_weights, axis=1, keepdims=True)
    return History(x, log_weights - jnp.where(total > -jnp.inf, total, 0), history.ancestors)
