"""A network as a pair of pure functions."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.flatten_util import ravel_pytree
from jaxtyping import PyTree

from jaxinf.core import Band, check_key


@dataclass(frozen=True)
class Network:
    """A network handed out as two pure functions of its parameters, for one example.

    Both are hashable, and equal to those of a network built again with the same settings, so that
    they can be static parts of a pytree and building anew compiles nothing anew. Batches come from
    ``jax.vmap``.

    Attributes:
      init: ``init(key, x, cond=None) -> params``. ``x`` is one example, or a
        ``jax.ShapeDtypeStruct`` like it; ``cond`` is needed only by networks of the user's own
        that take another ``cond`` than a class. The parameters of this room's networks are
        float32.
      apply: ``apply(params, x, t, cond=None) -> array`` of ``x``'s shape and dtype. ``t`` is the
        noise level, a scalar of about [-2.5, 2.5] (a quarter of the log of noise over signal).
        ``cond`` is ``None``, or a class in ``[0, classes]``, of which the last, ``classes``
        itself, means "no class" and serves classifier-free guidance. A network that can work on a
        band of an example's rows has ``apply.on_band(params, x, t, cond, band, context) -> (array,
        context)``: ``band`` is a ``core.Band``, which fetches of the other bands what a layer
        needs, and ``context`` what each layer let them see at the last step, with the band's
        tokens as leading axis; empty, ``{}``, at the first.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., jax.Array]


@dataclass(frozen=True)
class _Init:
    """``init`` of a linen module by its own initialisers."""

    module: nn.Module

    def __call__(self, key: Any, x: Any, cond: Any = None) -> PyTree:
        """The module's parameters for examples like ``x``."""
        check_key(key)
        return _init(self.module, key, jnp.zeros(x.shape, x.dtype), cond)


@dataclass(frozen=True)
class _Draw:
    """``init`` of a linen module whose initialisers give standard deviations.

    One draw for all parameters compiles in a second where one for each takes many.
    """

    module: nn.Module

    def __call__(self, key: Any, x: Any, cond: Any = None) -> PyTree:
        """Normal parameters for examples like ``x``."""
        check_key(key)
        return _draw(self.module, key, jnp.zeros(x.shape, x.dtype), cond)


@dataclass(frozen=True)
class _Apply:
    """``apply`` of a linen module."""

    module: nn.Module

    def __call__(self, params: PyTree, x: Any, t: Any, cond: Any = None) -> jax.Array:
        """The module's output at ``x``, in ``x``'s dtype."""
        x = jnp.asarray(x)
        return like(self.module.apply({"params": params}, x, t, cond), x, self.module)


@dataclass(frozen=True)
class _ApplyOnBands:
    """``apply`` of a linen module that takes a band and keeps the collection ``context``."""

    module: nn.Module

    def __call__(self, params: PyTree, x: Any, t: Any, cond: Any = None) -> jax.Array:
        """The module's output at ``x``, in ``x``'s dtype."""
        return _Apply(self.module)(params, x, t, cond)

    def on_band(
        self, params: PyTree, x: Any, t: Any, cond: Any, band: Band, context: PyTree
    ) -> tuple[jax.Array, PyTree]:
        """The output at a band's ``x``, and what this step's layers let the other bands see."""
        variables = {"params": params, "context": context}
        output, new = self.module.apply(variables, x, t, cond, band, mutable=["context"])
        return like(output, x, self.module), new["context"]


@jax.jit(static_argnums=0)
def _init(module: nn.Module, key: Any, x: Any, cond: Any) -> PyTree:
    """The parameters of a module that has nothing else."""
    variables = module.init(key, x, jnp.zeros((), x.dtype), cond)
    others = sorted(set(variables) - {"params"})
    if others:
        raise ValueError(
            f"{type(module).__name__} has the collections {', '.join(others)} besides params; a "
            "network must be a pure function of its parameters. Replace layers that keep "
            "statistics (BatchNorm by GroupNorm or LayerNorm)."
        )
    return variables.get("params", {})


@jax.jit(static_argnums=0)
def _draw(module: nn.Module, key: Any, x: Any, cond: Any) -> PyTree:
    """Standard deviations times one normal draw."""
    deviations, unravel = ravel_pytree(_init(module, key, x, cond))
    return unravel(deviations * jax.random.normal(key, deviations.shape, deviations.dtype))


def deviation(key: Any, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """An initialiser for :func:`drawn`: variance one over the number of inputs (LeCun's)."""
    del key
    return jnp.full(shape, math.prod(shape[:-1]) ** -0.5, dtype)


def drawn(module: nn.Module) -> Network:
    """A network from a module whose initialisers give standard deviations instead of draws."""
    return Network(_Draw(module), _Apply(module))


def drawn_on_bands(module: nn.Module) -> Network:
    """As :func:`drawn`, of a module that works on bands too."""
    return Network(_Draw(module), _ApplyOnBands(module))


def like(output: Any, x: jax.Array, module: Any) -> jax.Array:
    """``output`` in the dtype of ``x``, once its shape has been checked."""
    if jnp.shape(output) != x.shape:
        raise ValueError(
            f"{type(module).__name__} returned shape {jnp.shape(output)} for one example of shape "
            f"{x.shape}; a network must return its input's shape."
        )
    return jnp.asarray(output, x.dtype)


def from_linen(module: nn.Module) -> Network:
    """Hand out a linen module as a pure :class:`Network`.

    Args:
      module: a module whose ``__call__(x, t, cond)`` takes one example, a scalar noise level and
        the condition (``None`` where there is none), and returns an array of ``x``'s shape. It
        must keep nothing but parameters. Its fields must be hashable, as linen's usually are
        (tuples, not lists).

    Returns:
      The network. Modules that are equal give equal networks, so that a module built again with
      the same fields traces nothing anew.

    Raises:
      TypeError: for anything that is no linen module, or one with a field that is not hashable.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(
            f"from_linen takes an instance of flax.linen.Module, got {module!r}. "
            "Use from_nnx for an nnx module."
        )
    try:
        hash(module)
    except TypeError as error:
        raise TypeError(
            f"{type(module).__name__} has a field that is not hashable ({error}). "
            "Give it tuples for lists and functions for arrays."
        ) from error
    return Network(_Init(module), _Apply(module))
