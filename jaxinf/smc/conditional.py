"""Conditional particle filters with ancestor sampling: moves of whole paths (particle Gibbs)."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, PyTree

from jaxinf.core import Key, check_key, first, rest
from jaxinf.markov import StateSpace
from jaxinf.markov.state_space import along, at, check_observations
from jaxinf.smc.proposal import From, Proposal, bootstrap, views, weigh


def conditional(
    key: Key,
    model: StateSpace,
    observations: PyTree,
    path: PyTree,
    *,
    observed: Bool[Array, " T"] | None = None,
    proposal: Proposal | None = None,
    particles: int = 20,
) -> PyTree:
    r"""Move a path of a state space's states, leaving their law given the observations as it is.

    A particle filter in which the last particle is the given path. The others draw their ancestors
    by the weights; the path's own is drawn anew at every time,

    .. math:: P(a = i) \propto w_{t-1}^i\, k_t(x'_t \mid x_{t-1}^i) / \eta_{t-1}(x_{t-1}^i)

    with eta the proposal's look-ahead, so that a few particles mix over long paths. One of the
    paths is drawn by the last weights. Alternated with a move of the parameters given the path it
    is particle Gibbs. Compiled once for a model's and a proposal's kind and shapes; many chains by
    ``jax.vmap``.

    Args:
      key: a typed key.
      model: a state space whose transition has a ``log_prob`` too.
      observations: a leading axis T of time.
      path: states, a leading axis T of time.
      observed: which observations are there; all by default.
      proposal: as for :func:`particle_filter`.
      particles: how many, the path among them; two or more.

    Returns:
      A path.

    Raises:
      TypeError: where the model's kernels lack what the proposal needs.
      ValueError: for a path or a mask of another length, and fewer than two particles.

    Reference:
      C. Andrieu, A. Doucet and R. Holenstein, "Particle Markov chain Monte Carlo methods", JRSS B
      2010; F. Lindsten, M. Jordan and T. Schon, "Particle Gibbs with ancestor sampling", JMLR 2014.
    """
    check_key(key)
    if particles < 2:
        raise ValueError(f"particles must be at least 2, the path and one other, got {particles}.")
    observations, observed = check_observations(observations, observed)
    lengths = {jnp.shape(leaf)[0] for leaf in jax.tree.leaves(path)}
    if lengths != {observed.shape[0]}:
        raise ValueError(
            f"path must have a state for each of the {observed.shape[0]} times, got {lengths}; "
            "model.sample(key, length)[0] draws one to start from."
        )
    proposal = bootstrap() if proposal is None else proposal
    return _conditional(key, model, observations, observed, path, proposal, particles)


@partial(jax.jit, static_argnames="particles")
def _conditional(
    key: Key,
    model: Any,
    observations: PyTree,
    observed: Array,
    path: PyTree,
    proposal: Any,
    particles: int,
) -> PyTree:
    """See :func:`conditional`."""
    seen = views(model, proposal, observations, observed)
    given = jnp.arange(particles) == particles - 1
    key_start, key_steps, key_end = jax.random.split(key, 3)

    def move(key: Key, kernel: Any, view: Any, fixed: PyTree, particle: Any, here: Array) -> Any:
        """Move a particle, or take the path's state, and weigh it."""
        x, past = particle
        law, correction = proposal.propose(kernel, x, view.row)
        y = jax.tree.map(lambda a, b: jnp.where(here, a, b), fixed, law.sample(key))
        log_weight, future = weigh(model, proposal, correction, y, past, view)
        return (y, future), log_weight

    def start(key: Key, here: Array) -> Any:
        none = (None, jnp.zeros(()))
        return move(key, From(model.initial), first(seen), first(path), none, here)

    def step(people: Any, slot: Any) -> Any:
        (x, past), log_weights = people
        key, transition, view, fixed = slot
        kernel = at(model.transition, transition)
        key_others, key_own, key_move = jax.random.split(key, 3)
        ancestors = jax.random.categorical(key_others, log_weights, shape=(particles,))
        back = log_weights - past + jax.vmap(lambda x: kernel.log_prob(x, fixed))(x)
        ancestors = jnp.where(given, jax.random.categorical(key_own, back), ancestors)
        chosen = jax.tree.map(lambda a: a[ancestors], (x, past))
        keys = jax.random.split(key_move, particles)
        one = partial(move, kernel=kernel, view=view, fixed=fixed)
        people = jax.vmap(lambda key, particle, here: one(key, particle=particle, here=here))(
            keys, chosen, given
        )
        return people, (people[0][0], ancestors)

    begin = jax.vmap(start)(jax.random.split(key_start, particles), given)
    keys = jax.random.split(key_steps, observed.shape[0] - 1)
    slots = keys, along(model.transition), rest(seen), rest(path)
    (_, log_weights), (later, ancestors) = jax.lax.scan(step, begin, slots)

    def trace(i: Array, slot: Any) -> tuple[Array, PyTree]:
        states, ancestors = slot
        return ancestors[i], jax.tree.map(lambda a: a[i], states)

    end = jax.random.categorical(key_end, log_weights)
    root, found = jax.lax.scan(trace, end, (later, ancestors), reverse=True)
    return jax.tree.map(lambda a, b: jnp.concatenate([a[root][None], b]), begin[0][0], found)
