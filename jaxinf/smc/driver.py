"""The driver of every particle method: move, weigh, resample."""

import dataclasses
from functools import partial
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from jaxinf.core import Key, Scalar, batch_vmap, check_key, prepend, spread
from jaxinf.core.progress import tick
from jaxinf.smc.population import Population, check_share, population
from jaxinf.smc.resampling import Scheme, systematic


@runtime_checkable
class Model(Protocol):
    """A Feynman-Kac model: a chain and the weights of its steps, for one particle; a pytree."""

    def init(self, key: Key) -> PyTree:
        """Draw a particle; in a :class:`Weighted` where the first ones have a weight."""
        ...

    def step(self, key: Key, particle: PyTree, inputs: PyTree) -> tuple[PyTree, Array]:
        """Move a particle by one step and return it with the logarithm of its weight's factor."""
        ...


class Weighted(NamedTuple):
    """A first particle with its weight."""

    particle: PyTree
    log_weight: Float[Array, ""]


class Info(NamedTuple):
    """What a step did."""

    ess: Float[Array, ""]
    """Effective sample size after the step."""
    resampled: Bool[Array, ""]
    """Whether particles were drawn anew before it."""
    alive: Bool[Array, ""]
    """Whether some weight was above 0 at all times so far."""
    log_increment: Float[Array, ""]
    """By how much the log-evidence grew."""


class History(NamedTuple):
    """The whole run."""

    particles: PyTree
    """After each step, leading axes [steps, particles]."""
    log_weights: Float[Array, "steps particles"]
    ancestors: Int[Array, "steps particles"]
    """Where each particle stood in the row above (in the first draws, for row 0)."""


class Run(NamedTuple):
    """What a run found."""

    population: Population
    """At the end, weighted."""
    log_evidence: Float[Array, ""]
    standard_error: Float[Array, ""]
    """Of the log-evidence; see :meth:`Population.log_evidence_error`."""
    info: Info
    """Of each step, [steps]; of the start before them where that has weights."""
    history: History | None
    """Of each step, or of the start and each step, as ``info``."""


def advance(
    key: Key,
    model: Model,
    state: Population,
    inputs: PyTree,
    resample: Scheme = systematic,
    threshold: Scalar = 0.5,
) -> tuple[Population, Info]:
    """Resample if it is due, then move and weigh every particle: one step of :func:`run`.

    Args:
      key: a typed key; a particle's own is folded from it by its place.
      model: the chain and its weights.
      state: the population.
      inputs: of this step.
      resample: the scheme.
      threshold: see :meth:`Population.resample`.

    Returns:
      The population and what was done.
    """
    key_resample, key_step = jax.random.split(key)
    due = state.due(threshold)
    drawn = state.resample(key_resample, resample, threshold)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_step, jnp.arange(state.size))
    particles, increments = batch_vmap(lambda key, x: model.step(key, x, inputs))(
        keys, spread(drawn.particles)
    )
    # from 0, so that the increment keeps its digits
    none = dataclasses.replace(drawn, log_evidence=jnp.zeros_like(drawn.log_evidence))
    new = none.weigh(increments, particles)
    info = Info(new.ess(), due, new.alive, new.log_evidence)
    total = state.log_evidence + new.log_evidence
    return dataclasses.replace(new, log_evidence=total), info


def run(
    key: Key,
    model: Model,
    inputs: PyTree,
    *,
    particles: int = 1000,
    resample: Scheme = systematic,
    threshold: Scalar = 0.5,
    history: bool = False,
    progress: bool = False,
) -> Run:
    r"""Run a Feynman-Kac model with interacting particles.

    .. math:: Z = E\Bigl[\prod_{t=1}^T G_t(x_t)\Bigr], \qquad
              x_0 \sim M_0, \quad (x_t, \log G_t) = \mathrm{step}(x_{t-1}, \mathrm{inputs}_t)

    The estimate of Z is unbiased for every scheme but ``metropolis``. Compiled once for a model's
    kind and shapes; composes under ``jit`` and ``vmap``; with a mesh in force (``jax.set_mesh``)
    the particles lie over its batch axes and are resampled together.

    Args:
      key: a typed key.
      model: a pytree with ``init(key)`` and ``step(key, particle, inputs)`` of one particle.
      inputs: a pytree of arrays with a leading axis of steps.
      particles: how many, two or more.
      resample: ``systematic``, ``stratified``, ``residual``, ``multinomial``, ``metropolis(B)``.
      threshold: the share of effective particles below which they are resampled; 1 always.
      history: whether all steps' particles are kept.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Run`. Where all weights became 0 the log-evidence is -inf, and ``info.alive`` says
      from when on; weights that are NaN are counted in ``population.invalid``.

    Raises:
      ValueError: for fewer than two particles, a threshold outside [0, 1], and inputs without a
        common leading axis.

    Reference:
      N. Chopin and O. Papaspiliopoulos, "An Introduction to Sequential Monte Carlo", 2020.
    """
    check_key(key)
    check_share("threshold", threshold)
    if particles < 2:
        raise ValueError(f"particles must be at least 2, got {particles}.")
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if not shapes or not all(shape and shape[0] == shapes[0][0] for shape in shapes):
        raise ValueError(
            f"inputs must be arrays with a leading axis of steps, got shapes {shapes}. Pass "
            "jnp.arange(steps) where a step needs nothing."
        )
    return _run(key, model, inputs, particles, resample, threshold, history, progress)


@partial(jax.jit, static_argnames=("particles", "resample", "history", "progress"))
def _run(
    key: Key,
    model: Any,
    inputs: PyTree,
    particles: int,
    resample: Scheme,
    threshold: Scalar,
    history: bool,
    progress: bool,
) -> Run:
    """See :func:`run`."""
    key_start, key_steps = jax.random.split(key)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key_start, jnp.arange(particles))
    drawn = batch_vmap(model.init)(keys)
    weighted = isinstance(drawn, Weighted)
    start = population(spread(drawn.particle if weighted else drawn))
    if weighted:
        start = start.weigh(drawn.log_weight)
    steps = jax.tree.leaves(inputs)[0].shape[0]

    def step(state: Population, row: Any) -> tuple[Population, Any]:
        i, now = row
        key = jax.random.fold_in(key_steps, i)
        state, info = advance(key, model, state, now, resample, threshold)
        if progress:
            tick(i, steps, "particles")
        return state, (info, keep(state))

    def keep(state: Population) -> History | None:
        kept = History(state.particles, state.log_weights, state.ancestors)
        return kept if history else None

    end, rows = jax.lax.scan(step, start, (jnp.arange(steps), inputs))
    if weighted:
        info = Info(start.ess(), jnp.zeros_like(start.alive), start.alive, start.log_evidence)
        first = info, keep(start)
        rows = prepend(first, rows)
    info, kept = rows
    return Run(end, end.log_evidence, end.log_evidence_error(), info, kept)
