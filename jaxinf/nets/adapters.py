"""A user's own nnx module as a network."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import PyTree

from jaxinf.core import check_key
from jaxinf.nets.network import Network, like


@dataclass(frozen=True)
class _Init:
    """``init`` of an nnx module."""

    make: Callable[[nnx.Rngs], nnx.Module]

    def __call__(self, key: Any, x: Any, cond: Any = None) -> PyTree:
        """The module's parameters; an nnx module knows its shapes without ``x``."""
        check_key(key)
        return nnx.as_pure(_split(self.make(nnx.Rngs(key)))[1])


@dataclass(frozen=True)
class _Apply:
    """``apply`` of an nnx module: its structure is static, its parameters are an argument."""

    structure: nnx.GraphDef

    def __call__(self, params: PyTree, x: Any, t: Any, cond: Any = None) -> jax.Array:
        """The module's output at ``x``, in ``x``'s dtype."""
        x = jnp.asarray(x)
        module = nnx.merge(self.structure, params)
        return like(module(x, t, cond), x, module)


def _split(module: nnx.Module) -> tuple[nnx.GraphDef, PyTree]:
    """Structure and parameters of a module that has nothing else."""
    structure, params, others = nnx.split(module, nnx.Param, ...)
    kinds = {type(v).__name__ for v in jax.tree.leaves(others, is_leaf=_is_variable)}
    if kinds:
        raise ValueError(
            f"{type(module).__name__} holds {', '.join(sorted(kinds))} besides parameters; a "
            "network must be a pure function of its parameters. Replace BatchNorm by GroupNorm or "
            "LayerNorm and leave out Dropout."
        )
    return structure, params


def _is_variable(node: Any) -> bool:
    """Whether a node of a state is a variable of nnx."""
    return isinstance(node, nnx.Variable)


def from_nnx(make: Callable[[nnx.Rngs], nnx.Module]) -> Network:
    """Hand out an nnx module as a pure :class:`Network`.

    The module is taken apart once, here, and put together inside ``apply``, so a call costs what
    one of a pure function costs.

    Args:
      make: builds the module from its random streams: ``lambda rngs: MyModule(64, rngs=rngs)``.
        The module's ``__call__(x, t, cond)`` takes one example, a scalar noise level and the
        condition (``None`` where there is none), and returns an array of ``x``'s shape. It must
        hold nothing but parameters.

    Returns:
      The network. ``apply`` is equal for modules of the same structure, so that a module built
      again traces nothing anew, as long as functions that it holds as attributes are the same
      objects. ``init`` is equal only for the same ``make``.

    Raises:
      TypeError: when ``make`` returns no nnx module.
      ValueError: when the module holds more than parameters.
    """
    module = nnx.eval_shape(lambda: make(nnx.Rngs(0)))
    if not isinstance(module, nnx.Module):
        raise TypeError(
            f"make must return an instance of flax.nnx.Module, got {type(module).__name__}. "
            "Pass a function of the random streams: from_nnx(lambda rngs: MyModule(rngs=rngs))."
        )
    return Network(_Init(make), _Apply(_split(module)[0]))
