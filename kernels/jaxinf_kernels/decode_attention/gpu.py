"""Attention to a paged cache on an NVIDIA GPU: what :mod:`gpu_kernel` is given, and its parts."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels.decode_attention.blocks import Blocks, blocks_for
from jaxinf_kernels.decode_attention.cache import Pages
from jaxinf_kernels.decode_attention.gpu_kernel import (
    BLOCK,
    LOG2E,
    WIDE,
    attend_part,
    transforms,
)
from jaxinf_kernels.decode_attention.gpu_places import Half, Inputs, Sizes
from jaxinf_kernels.decode_attention.problem import Operands, Problem
from jaxinf_kernels.tiles import up

WIDEST = 256
"""Numbers of a key or a value."""
UNIT = 64
"""Tokens that the four warps of a block have at a time."""
LEAST = 256
"""Tokens below which a sequence is not cut further."""
WHOLE = 4096
"""Rows times numbers of a key or a value that fit into registers."""
SPARE = 4096
"""Bytes of shared memory for what is small, among them what reductions need."""


def refusal(spec: Problem, arrays: Any) -> str | None:
    """Return why the kernel does not take this, and what it takes."""
    given = spec.operands(arrays)
    cache, page = given.cache, given.cache.page_size
    if given.q.dtype != WIDE:
        return (
            f"its queries are in bfloat16, not {given.q.dtype}: cast them, and a cache in full "
            "precision, with astype"
        )
    widths = cache.keys.width, cache.values.width
    if any(width % UNIT or width > WIDEST for width in widths):
        return (
            f"its keys and values have a multiple of {UNIT} numbers, {WIDEST} at most, not "
            f"{widths[0]} and {widths[1]}: fill them up with zeros"
        )
    if cache.keys.channels is not None or cache.keys.blocks is not None:
        if page % UNIT:
            return (
                f"of a cache in {cache.form} its pages have a multiple of {UNIT} tokens, not "
                f"{page}: take such pages, or INT8 or E4M3"
            )
    elif page % UNIT and page not in (8, 16, 32):
        return f"its pages have 8, 16, 32 or a multiple of {UNIT} tokens, not {page}"
    return None


def attend(
    *arrays: Array, spec: Problem, blocks: Blocks | None = None, interpret: Any = False
) -> tuple[Array, Array]:
    """Return outputs [B, N, G, R, E] and the logarithms of the softmax's sums [B, N, G, R]."""
    given = spec.operands(arrays)
    chip = spec.how.gpu
    blocks = blocks or spec.how.blocks or blocks_for(chip)
    batch = max(a.shape[0] for a in arrays)
    sizes = _sizes(spec, given, blocks, chip.memory, batch, bool(interpret))
    inputs = _inputs(given, batch, sizes)
    leaves = jax.tree.leaves(inputs)
    number = batch * sizes.blocks * sizes.groups * sizes.tiles * sizes.parts
    shape = partial(jax.ShapeDtypeStruct, dtype=jnp.float32)
    tree = jax.tree.structure(inputs)

    def body(*refs: Any) -> None:
        mine = tree.unflatten(refs[: len(leaves)])
        outs = refs[len(leaves) : len(leaves) + 3]
        attend_part(spec, sizes, mine, outs, _named(inputs, refs[len(leaves) + 3 :]))

    top, total, mean = plgpu.kernel(
        body,
        out_type=(
            shape((number, sizes.rows)),
            shape((number, sizes.rows)),
            shape((number, sizes.e, sizes.rows)),
        ),
        grid=(sizes.parts, sizes.groups * sizes.tiles, sizes.blocks, batch),
        grid_names=("part", "group", "block", "example"),
        scratch_types=_scratch(given, sizes),
        interpret=interpret or None,
        kernel_name="decode_attention",
    )(*leaves)
    return _merged(given, sizes, batch, top, total, mean)


def _sizes(
    spec: Problem, given: Operands, blocks: Blocks, memory: int, batch: int, interpret: bool
) -> Sizes:
    """Cut rows into tiles and sequences into parts; see how many stages memory holds."""
    cache, page = given.cache, given.cache.page_size
    d, e = cache.keys.width, cache.values.width
    number, groups, rows = given.q.shape[1:4]
    most = max(8, min(blocks.rows, WHOLE // max(d, e)) // 8 * 8)
    tiles = -(-rows // most)
    tile = up(-(-rows // tiles), 8)
    ring = int(cache.bytes_per_token / groups)
    wide = e if cache.form is not None else 0
    one_page = cache.keys.channels is not None or cache.keys.blocks is not None

    def used(tokens: int, stages: int) -> int:
        """Bytes of shared memory."""
        return 2 * (tokens * (tile + wide) + tile * d) + stages * tokens * ring + SPARE

    tokens = max(UNIT, blocks.tokens // UNIT * UNIT)
    while (page % tokens and (one_page or tokens % page)) or (
        tokens > UNIT and used(tokens, 2) > memory
    ):
        tokens -= UNIT
    stages = blocks.stages
    while stages > 2 and used(tokens, stages) > min(blocks.memory, memory):
        stages -= 1
    sequences, width = given.table.shape[1:]
    at_once = max(1, min(4, memory // used(tokens, stages)))
    parts = min(
        at_once * blocks.cores // (batch * number * groups * tiles), -(-width * page // LEAST)
    )
    own: tuple[Any, ...] = tuple(
        a is not None and a.shape[0] > 1
        for a in (given.q, given.table, given.slopes, cache.keys.elements)
    )
    return Sizes(
        tile, rows // spec.queries, tiles, max(1, parts), tokens, page, stages, number, groups, d,
        e, width, sequences, cache.keys.elements.shape[1], own, cache.keys.blocks is not None,
        interpret,
    )  # fmt: skip


def _inputs(given: Operands, batch: int, sizes: Sizes) -> Inputs:
    """Return arrays in as few axes as copies take."""
    more = sizes.tiles * sizes.rows - given.q.shape[3]
    q = jnp.pad(given.q, ((0, 0), (0, 0), (0, 0), (0, more), (0, 0))).reshape(-1, sizes.d)
    slopes = given.slopes
    if slopes is not None:
        slopes = jnp.tile(slopes.astype(jnp.float32), (1, 1, given.q.shape[3] // sizes.repeats))
        slopes = jnp.pad(slopes, ((0, 0), (0, 0), (0, more))).reshape(-1, sizes.rows)

    def flat(a: Array) -> Array:
        return jnp.broadcast_to(a, (batch, a.shape[1])).reshape(-1).astype(jnp.int32)

    scalars = tuple(flat(a) for a in (given.sequence, given.first, given.end))
    table = given.table.reshape(-1).astype(jnp.int32)
    keys, values = (_half(half) for half in (given.cache.keys, given.cache.values))
    return Inputs(q, slopes, scalars, table, keys, values)


def _half(pages: Pages) -> Half:
    """Return keys' or values' arrays in two axes."""
    fields = pages.elements, pages.scales, pages.blocks, pages.channels
    return Half(*(None if a is None else a.reshape(-1, a.shape[-1]) for a in fields))


def _scratch(given: Operands, sizes: Sizes) -> list[Any]:
    """Return the types of queries, weights, widened values, the ring, and barriers."""
    cache, ring = given.cache, (sizes.stages, sizes.tokens)
    found = [
        plgpu.SMEM((sizes.rows, sizes.d), WIDE, transforms=transforms(sizes.d, WIDE)),
        plgpu.SMEM((sizes.tokens, sizes.rows), WIDE),
    ]
    if cache.form is not None:
        shape = sizes.tokens, sizes.e
        found.append(plgpu.SMEM(shape, WIDE, transforms=transforms(sizes.e, WIDE)))
    leaves = 0
    for pages in (cache.keys, cache.values):
        kind, width = pages.elements.dtype, pages.width
        shape = *ring, width
        found.append(plgpu.SMEM(shape, kind, transforms=transforms(width, kind)))
        if pages.scales is not None:
            found.append(plgpu.SMEM(ring, jnp.float32))
        if pages.blocks is not None:
            shape = sizes.stages, width // BLOCK, sizes.tokens
            found.append(plgpu.SMEM(shape, pages.blocks.dtype))
        if pages.channels is not None:
            found.append(plgpu.SMEM((sizes.stages, width), jnp.float32))
        leaves += len(jax.tree.leaves(pages))
    copies = leaves * max(1, sizes.tokens // sizes.page)
    return [
        *found,
        plgpu.Barrier(num_arrivals=copies, num_barriers=sizes.stages),
        plgpu.Barrier(),
    ]


def _named(inputs: Inputs, refs: Any) -> Any:
    """Name what :func:`_scratch` made."""
    rest = iter(refs)
    q, weights = next(rest), next(rest)
    wide = None if inputs.keys.elements.dtype == WIDE else next(rest)
    keys, values = (
        Half(*(None if a is None else next(rest) for a in half))
        for half in (inputs.keys, inputs.values)
    )
    return q, weights, wide, keys, values, next(rest), next(rest)


def _merged(
    given: Operands, sizes: Sizes, batch: int, top: Array, total: Array, mean: Array
) -> tuple[Array, Array]:
    """Merge parts, in their order, and the sink."""
    shape = batch, sizes.blocks, sizes.groups, sizes.tiles, sizes.parts
    rows = given.q.shape[3]

    def all_rows(a: Array) -> Array:
        """[B, N, G, tiles, rows, ...] to [B, N, G, R, ...]."""
        return a.reshape(*a.shape[:3], -1, *a.shape[5:])[:, :, :, :rows]

    top, total = (a.reshape(*shape, sizes.rows) for a in (top, total))
    highest = jnp.max(top, axis=4, keepdims=True)
    share = jnp.exp2(top - highest)
    whole = all_rows(jnp.sum(total * share, axis=4))
    mean = jnp.sum(mean.reshape(*shape, sizes.e, -1) * share[:, :, :, :, :, None], axis=4)
    mean, highest = all_rows(mean.swapaxes(4, 5)), all_rows(highest[:, :, :, :, 0])
    if given.sinks is not None:
        sink = jnp.tile(given.sinks.astype(jnp.float32) * LOG2E, (1, 1, rows // sizes.repeats))
        above = jnp.maximum(highest, sink[:, None])
        share = jnp.exp2(highest - above)
        mean, whole, highest = mean * share[..., None], whole * share, above
        whole = whole + jnp.exp2(sink[:, None] - above)
    there = whole > 0
    safe = jnp.where(there, whole, 1)
    out = jnp.where(there[..., None], mean / safe[..., None], 0).astype(given.q.dtype)
    return out, jnp.where(there, (highest + jnp.log2(safe)) / LOG2E, -jnp.inf)
