"""Kernels in programs that a compiler divides over devices.

The compiler cannot look into a kernel. Where it is known over which axes of a mesh the batch lies,
each device is given its part.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec
from jaxtyping import Array

Letters = tuple[Sequence[str], Sequence[str]]
"""Of arrays and of results, a letter for each axis: B for the batch, H for heads, x for what each
device has whole."""


class Over(NamedTuple):
    """Where a batch lies, as ``jax.vmap(..., spmd_axis_name=...)`` says it."""

    mesh: Any = None
    names: tuple[str, ...] = ()


def divided(function: Callable[..., Any], over: Over, letters: Letters) -> Callable[..., Any]:
    """Give each device its part of a kernel's work.

    Args:
      function: of arrays to arrays.
      over: which axes of the mesh divide the batch; the others divide heads, if these go into them.
      letters: of the function's arrays and results.

    Returns:
      The function of whole arrays.
    """
    rest = tuple(name for name in over.mesh.axis_names if name not in over.names)

    def called(*arrays: Array) -> Any:
        heads = {
            a.shape[word.index("H")]
            for a, word in zip(arrays, letters[0], strict=True)
            if "H" in word
        }
        parts = math.prod(over.mesh.shape[name] for name in rest)
        held = {"B": over.names, "H": rest if all(h % parts == 0 for h in heads) else None}

        def placed(words: Sequence[str]) -> tuple[PartitionSpec, ...]:
            return tuple(PartitionSpec(*(held.get(c) for c in word)) for word in words)

        mapped = jax.shard_map(
            lambda *arrays: tuple(function(*arrays)),
            mesh=over.mesh, in_specs=placed(letters[0]), out_specs=placed(letters[1]),
            check_vma=False,
        )  # fmt: skip
        return mapped(*arrays)

    return called


def letters_of(a: Any, batch: int, heads: bool = False) -> str:
    """Return an array's letters: the batch in front, heads behind where these can be divided."""
    behind = a.ndim - 1 - heads
    return ("B" if a.shape[0] == batch else "x") + "H" * heads + "x" * behind
