"""Expectation maximisation of a prior from noisy or incomplete observations."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxinf.core import Key, PyTree, check_key
from jaxinf.core.progress import tick


class EMInfo(NamedTuple):
    """What the rounds were."""

    invalid: Int[Array, " rounds"]
    """Observations whose draw was not finite."""
    skipped: Int[Array, " rounds"]
    """1 where the refitted parameters were not finite, so that the last ones were kept."""
    record: PyTree
    """What ``record`` returned, with a leading axis of rounds."""


class EM(NamedTuple):
    """What expectation maximisation found."""

    params: PyTree
    """Of the prior, after the last round."""
    info: EMInfo


def expectation_maximisation(
    key: Key,
    draw: Callable[..., Any],
    refit: Callable[..., Any],
    params: PyTree,
    observations: PyTree,
    *,
    rounds: int,
    record: Callable[..., Any] | None = None,
    progress: bool = False,
) -> EM:
    r"""Learn a prior from observations that hide parts of the examples.

    .. math:: \theta_{k+1} = \arg\max_\theta \sum_i E_{p_k(x \mid y_i)}\bigl[\log p_\theta(x)\bigr]

    Each round draws one x of each observation's posterior under the last prior, and refits the
    prior to the draws as if they were data. Where both steps are exact the evidence of the
    observations never falls.

    Args:
      key: a typed key; round k has the keys folded from it by k.
      draw: the E step, ``draw(key, params, observations) -> x``, any pytree of examples with the
        observations' leading axis. For a diffusion prior ``sampler.sample`` with the denoiser
        conditioned on the observations; posterior moments in place of draws are the classical E
        step, for a ``refit`` that takes them.
      refit: the M step, ``refit(key, params, x) -> params``: training steps from the last
        parameters, or the maximiser itself.
      params: of the first prior, whose support must hold the data: a Gaussian's, say.
      observations: a pytree, whatever ``draw`` takes: values, masks, noise.
      rounds: how many.
      record: ``record(key, params, x)`` after each round, whose values are stacked in the info.
      progress: whether a bar counts the rounds.

    ``draw``, ``refit`` and ``record`` are functions of a module, part of the compiled program, or
    pytrees that can be called (a record, ``jax.tree_util.Partial(f, plan)``), whose other numbers
    compile nothing.

    Returns:
      :class:`EM`.

    Raises:
      TypeError: for a raw key.
      ValueError: for fewer than one round, and for a ``refit`` that returns parameters of another
        form.

    Reference:
      F. Rozet, G. Andry, F. Lanusse and G. Louppe, "Learning Diffusion Priors from Observations by
      Expectation Maximization" (2024), section 4.1.

    Example:
      ``expectation_maximisation(key, posterior_draws, moments, core.gaussian(m, C), (y, masks),
      rounds=30).params``
    """
    check_key(key)
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds}.")
    steps = [_pytree(step) for step in (draw, refit, record)]
    return _run(key, *steps, params, observations, rounds, progress)


@partial(jax.jit, static_argnames=("rounds", "progress"))
def _run(
    key: Key,
    draw: Any,
    refit: Any,
    record: Any,
    params: PyTree,
    observations: PyTree,
    rounds: int,
    progress: bool,
) -> EM:
    """See :func:`expectation_maximisation`."""
    params = jax.tree.map(jnp.asarray, params)

    def step(params: PyTree, k: Array) -> tuple[PyTree, EMInfo]:
        e, m, r = jax.random.split(jax.random.fold_in(key, k), 3)
        x = draw(e, params, observations)
        new = _like(params, refit(m, params, x))
        fine = jnp.all(_finite(new, whole=True))
        new = jax.tree.map(partial(jnp.where, fine), new, params)
        seen = None if record is None else record(r, new, x)
        if progress:
            tick(k, rounds, "rounds")
        invalid = jnp.sum(~_finite(x), dtype=jnp.int32)
        return new, EMInfo(invalid, 1 - fine.astype(jnp.int32), seen)

    return EM(*jax.lax.scan(step, params, jnp.arange(rounds)))


def _pytree(step: Any) -> Any:
    """Return a function as a pytree without leaves, and a pytree as it is."""
    return jax.tree_util.Partial(step) if jax.tree_util.all_leaves([step]) else step


def _finite(tree: PyTree, whole: bool = False) -> Array:
    """Return whether floating leaves are finite, row by row of the leading axis or as a whole."""
    floats = [leaf for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.inexact)]
    rows = [jnp.isfinite(a).reshape(1 if whole else a.shape[0], -1).all(1) for a in floats]
    return jnp.stack(rows).all(0) if rows else jnp.ones(1, bool)


def _like(params: PyTree, new: PyTree) -> PyTree:
    """Return refitted parameters in the dtypes of the last ones; raise for another form."""
    given, found = jax.tree.structure(params), jax.tree.structure(new)
    shapes = [[jnp.shape(a) for a in jax.tree.leaves(tree)] for tree in (params, new)]
    if given != found or shapes[0] != shapes[1]:
        raise ValueError(
            f"refit must return parameters of the form that it was given, {given} with shapes "
            f"{shapes[0]}, and it returned {found} with shapes {shapes[1]}; start from parameters "
            "of that form."
        )
    return jax.tree.map(lambda a, b: jnp.asarray(b, a.dtype), params, new)
