"""Which part of attention to a cache a GPU's block of threads has."""

from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax

from jaxinf_kernels.decode_attention.problem import Problem


class Sizes(NamedTuple):
    """Of what a block of threads does."""

    rows: int
    """Of a group that it has: a multiple of 8."""
    repeats: int
    """Rows of one query."""
    tiles: int
    """How many times ``rows`` a group has."""
    parts: int
    """Into which a sequence is cut."""
    tokens: int
    """That are fetched at a time: a multiple of 64, and whole pages or a whole part of one."""
    page: int
    """Tokens of a page."""
    stages: int
    """Fetches under way, with the one that is worked on."""
    blocks: int
    """Of queries, of one example."""
    groups: int
    d: int
    e: int
    width: int
    """Pages of a row of the table."""
    sequences: int
    pages: int
    """Of a cache."""
    own: tuple[bool, ...]
    """Whether queries, tables, slopes and caches are an example's own."""
    places: bool
    """Whether the cache holds NVFP4."""
    interpret: bool


class Inputs(NamedTuple):
    """Arrays in the GPU's memory, in as few axes as copies take."""

    q: Any
    """[batch * blocks * groups * tiles * rows, d]"""
    slopes: Any
    """[batch * groups * tiles, rows], or None."""
    scalars: Any
    """Of sequence, first and end each [batch * blocks]."""
    table: Any
    """[batch * sequences * width]"""
    keys: "Half"
    values: "Half"


class Half(NamedTuple):
    """Keys or values: the cache's, or what of them is in shared memory."""

    elements: Any
    """[pages * page, groups * width]; [stages, tokens, width]."""
    scales: Any
    """[pages * groups, page]; [stages, tokens]; or None."""
    blocks: Any
    """[pages * groups * width / 16, page]; [stages, width / 16, tokens]; or None."""
    channels: Any
    """[pages, groups * width]; [stages, width]; or None."""


class Place(NamedTuple):
    """Of a block of threads."""

    group: Any
    tile: Any
    """Of the group's rows."""
    part: Any
    block: Any
    """Of queries, over the batch."""
    example: Any
    queries: Any
    """Which rows of queries, in units of a tile."""
    slopes: Any
    result: Any

    @staticmethod
    def here(sizes: Sizes) -> "Place":
        """Return where this one is."""
        part, across = lax.axis_index("part"), lax.axis_index("group")
        group = lax.div(across, jnp.int32(sizes.tiles))
        tile = lax.rem(across, jnp.int32(sizes.tiles))
        batch, mine = lax.axis_index("example"), lax.axis_index("block")
        block = batch * sizes.blocks + mine
        along = sizes.groups * sizes.tiles
        queries = (block if sizes.own[0] else mine) * along + across
        result = (block * along + across) * sizes.parts + part
        slopes = across + (batch * along if sizes.own[2] else 0)
        return Place(group, tile, part, block, batch, queries, slopes, result)


class Bounds(NamedTuple):
    """Which fetches, of ``tokens`` each from the sequence's first, a block of threads works on."""

    low: Any
    """The first."""
    begin: Any
    """The first of those of which every query sees every token."""
    end: Any
    """That after the last of those."""
    high: Any
    """That after the last."""
    first: Any
    """Position of the block's first query."""
    last: Any
    """Position after its last."""
    row: Any
    """Where the sequence's pages begin in the table."""
    pages: Any
    """Pages that hold what is seen."""

    @staticmethod
    def of(spec: Problem, sizes: Sizes, at: Place, scalars: Any) -> "Bounds":
        """Work them out."""
        sequence, first, last = (ref[at.block] for ref in scalars)
        size = jnp.int32(sizes.tokens)
        inside = jnp.clip(last, 0, sizes.width * sizes.page)
        after = lax.div(inside + (sizes.tokens - 1), size)
        start = begin = jnp.int32(0)
        if spec.window is not None:
            start = lax.div(jnp.maximum(first - (spec.window - 1), 0), size)
            begin = jnp.maximum(last - spec.window, 0) + (sizes.tokens - 1)
            begin = lax.div(begin, size)
        each = lax.div(jnp.maximum(after - start, 0) + (sizes.parts - 1), jnp.int32(sizes.parts))
        low = start + at.part * each
        high = jnp.maximum(jnp.minimum(low + each, after), low)
        begin = jnp.clip(begin, low, high)
        end = jnp.clip(lax.div(jnp.maximum(first + 1, 0), size), begin, high)
        row = (sequence + (at.example * sizes.sequences if sizes.own[1] else 0)) * sizes.width
        pages = lax.div(inside + (sizes.page - 1), jnp.int32(sizes.page))
        return Bounds(low, begin, end, high, first, last, row, pages)
