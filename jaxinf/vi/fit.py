"""Gradient descent on an objective, as one compiled program."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxinf.core import Key, check_key
from jaxinf.core.progress import tick
from jaxinf.vi.checks import check_least


class Steps(NamedTuple):
    """What the steps of a fit were."""

    loss: Float[Array, " steps"]
    bound: Float[Array, " steps"]
    """The objective's estimate of the bound on the log-evidence, in nats."""
    invalid: Int[Array, " steps"]
    """How many log densities were not finite."""
    skipped: Int[Array, " steps"]
    """1 where loss or gradient was not finite, so that nothing was changed."""


class Fit(NamedTuple):
    """What a fit found."""

    params: PyTree
    """After the last step whose loss and gradient were finite."""
    opt_state: PyTree
    info: Steps


def fit(
    key: Key,
    loss: Callable[..., Any],
    params: PyTree,
    *args: Any,
    inputs: PyTree = None,
    steps: int = 2000,
    optimizer: optax.GradientTransformation | None = None,
    opt_state: PyTree = None,
    progress: bool = False,
) -> Fit:
    """Make a loss small.

    One program for a loss, an optimiser and shapes: other numbers and keys compile nothing anew,
    for optimisers that are built once.

    Args:
      key: a typed key; step i has the key folded from it by i.
      loss: ``loss(params, key, *args) -> (value, info)`` as objectives return them; a function of
        a module, or a frozen dataclass, so that it is known again.
      params: a pytree of floats, where to start.
      args: more of the loss's arguments: data, a target.
      inputs: of each step, a pytree with a leading axis of steps; a step's own are the loss's last
        argument, where there are any.
      steps: how many.
      optimizer: optax's; Adam at 1e-2 by default.
      opt_state: of an earlier fit, to go on.
      progress: whether a bar counts the steps.

    Returns:
      :class:`Fit`. A step whose loss or gradient is not finite changes nothing and is counted.

    Raises:
      ValueError: for fewer than one step, and inputs of another length.
    """
    check_key(key)
    check_least(steps=steps)
    shapes = [jnp.shape(leaf) for leaf in jax.tree.leaves(inputs)]
    if any(shape[:1] != (steps,) for shape in shapes):
        raise ValueError(f"inputs must have a leading axis of {steps} steps, got shapes {shapes}.")
    optimizer = _ADAM if optimizer is None else optimizer
    state = optimizer.init(params) if opt_state is None else opt_state
    return _fit(key, params, state, args, inputs, loss, steps, optimizer, progress)


_ADAM = optax.adam(1e-2)


@partial(jax.jit, static_argnames=("loss", "steps", "optimizer", "progress"))
def _fit(
    key: Key, params: PyTree, state: PyTree, args: Any, inputs: PyTree, loss: Any, steps: int,
    optimizer: Any, progress: bool,
) -> Fit:  # fmt: skip
    """See :func:`fit`."""
    gradient = jax.value_and_grad(loss, has_aux=True)

    def step(held: tuple[PyTree, PyTree], row: Any) -> tuple[Any, Steps]:
        (params, state), (i, now) = held, row
        last = () if now is None else (now,)
        (value, info), grads = gradient(params, jax.random.fold_in(key, i), *args, *last)
        fine = jnp.isfinite(value) & jnp.isfinite(optax.tree.norm(grads))
        updates, new = optimizer.update(grads, state, params)
        moved = optax.apply_updates(params, updates), new
        if progress:
            tick(i, steps, "fit")
        held = jax.tree.map(lambda a, b: jnp.where(fine, a, b), moved, held)
        return held, Steps(value, info.bound, info.invalid, 1 - fine.astype(jnp.int32))

    (params, state), rows = jax.lax.scan(step, (params, state), (jnp.arange(steps), inputs))
    return Fit(params, state, rows)
