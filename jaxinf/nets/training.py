"""Training as a pair of pure functions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int, PyTree

from jaxinf.core import Key


class TrainState(NamedTuple):
    """What a training step carries.

    Attributes:
      params: the parameters.
      average: their exponential moving average, to be used for sampling.
      opt_state: the optimiser's state.
      count: how many steps were taken, int32.
    """

    params: PyTree
    average: PyTree
    opt_state: PyTree
    count: Int[Array, ""]


@dataclass(frozen=True)
class Training:
    """Training as two pure functions, to be jitted, scanned, or mapped over seeds.

    Attributes:
      init: ``init(params) -> TrainState``.
      step: ``step(key, state, batch) -> (state, metrics)``, with the float32 scalars ``loss`` and
        ``gradient_norm`` as metrics.
    """

    init: Callable[[PyTree], TrainState]
    step: Callable[[Key, TrainState, PyTree], tuple[TrainState, dict[str, Float[Array, ""]]]]


def training(
    loss: Callable[[PyTree, Key, PyTree], tuple[Any, Any]],
    optimizer: optax.GradientTransformation,
    *,
    average: float = 0.999,
    accumulate: int = 1,
) -> Training:
    r"""Gradient descent with an exponential moving average of the parameters.

    .. math:: \bar\theta \leftarrow d\,\bar\theta + (1 - d)\,\theta, \qquad
              d = \min\{\mathrm{average},\ (1 + n) / (10 + n)\}

    after step ``n`` = 0, 1, ..., so that the average forgets the start quickly.

    Args:
      loss: ``loss(params, key, batch) -> (value, aux)``, the mean over the batch's leading axis.
      optimizer: any of optax's. A schedule of the learning rate and clipping are optax's own:
        ``optax.chain(optax.clip_by_global_norm(1.0),
        optax.adam(optax.warmup_cosine_decay_schedule(0.0, 1e-3, 100, 2000)))``.
      average: largest decay of the moving average, in [0, 1).
      accumulate: into how many parts the batch's leading axis is split, one after another, to save
        memory. Each part has a key of its own.

    Returns:
      :class:`Training`.

    Raises:
      ValueError: for an ``average`` outside [0, 1) or ``accumulate`` below 1; at trace time for a
        batch that does not divide into the parts.

    Example:
      ``train = training(loss, optax.adam(1e-3)); state = train.init(net.init(key, x[0]))``
    """
    if not 0 <= average < 1:
        raise ValueError(f"average must lie in [0, 1), got {average}; 0 keeps no average.")
    if accumulate < 1:
        raise ValueError(f"accumulate must be at least 1, got {accumulate}; 1 splits nothing.")
    gradient = jax.value_and_grad(loss, has_aux=True)

    def init(params: PyTree) -> TrainState:
        copy = jax.tree.map(jnp.copy, params)  # an own buffer, so that the state can be donated
        return TrainState(params, copy, optimizer.init(params), jnp.zeros((), jnp.int32))

    def step(key: Key, state: TrainState, batch: PyTree) -> tuple[TrainState, dict[str, Array]]:
        if accumulate == 1:
            (value, _), grads = gradient(state.params, key, batch)
        else:
            value, grads = _accumulated(gradient, accumulate, key, state.params, batch)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        n = state.count.astype(jnp.float32)
        decay = jnp.minimum(average, (1 + n) / (10 + n))
        mean = optax.incremental_update(params, state.average, 1 - decay)
        metrics = {
            "loss": jnp.asarray(value, jnp.float32),
            "gradient_norm": jnp.asarray(optax.tree.norm(grads), jnp.float32),
        }
        return TrainState(params, mean, opt_state, state.count + 1), metrics

    return Training(init, step)


def _accumulated(
    gradient: Callable[..., Any], parts: int, key: Key, params: PyTree, batch: PyTree
) -> tuple[Array, PyTree]:
    """The mean of values and gradients over equal parts of the batch."""

    def split(leaf: Any) -> Any:
        if jnp.ndim(leaf) == 0 or leaf.shape[0] % parts:
            raise ValueError(
                f"accumulate={parts} must divide the leading axis of every array in the batch, "
                f"got shape {jnp.shape(leaf)}. Change the batch's size or accumulate."
            )
        rows = leaf.reshape(leaf.shape[0] // parts, parts, *leaf.shape[1:])
        return jnp.swapaxes(rows, 0, 1)  # every part lies on all the devices that hold the batch

    def add(total: PyTree, inputs: tuple[Key, PyTree]) -> tuple[PyTree, None]:
        part_key, part = inputs
        (value, _), grads = gradient(params, part_key, part)
        return jax.tree.map(lambda a, b: a + b / parts, total, (value, grads)), None

    inputs = jax.random.split(key, parts), jax.tree.map(split, batch)
    first = jax.tree.map(lambda leaf: leaf[0], inputs)
    shapes = jax.eval_shape(gradient, params, *first)
    (value, _), grads = shapes
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), (value, grads))
    (value, grads), _ = jax.lax.scan(add, zeros, inputs)
    return value, grads
