"""Attention to a paged cache on a TPU.

One grid step is one block of a sequence's queries, for all groups, because a page holds all of
them. Pages stay in the chip's memory and are fetched some at a time into one of two buffers while
the other is worked on, also across steps: the last pages of a sequence arrive with the first of the
next one under way. Only pages that a query sees are fetched.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array

from jaxinf_kernels.decode_attention.cache import Cache, Pages, magnitudes
from jaxinf_kernels.decode_attention.problem import Problem, score, seen
from jaxinf_kernels.formats import NVFP4
from jaxinf_kernels.tiles import LANES, precise

LOWEST = -0.7 * float(np.finfo(np.float32).max)
"""Logits of what is not seen. Running maxima start from half of it: so the weight of what is not
seen is zero, also where nothing has been."""
LOG2E = float(np.log2(np.e))
WIDE = ((1,), (1,)), ((), ())
"""Rows with rows."""
INTO = ((1,), (0,)), ((), ())
"""Rows with columns."""


class Sizes(NamedTuple):
    """Of what a step does."""

    steps: int
    """Blocks of queries that one core goes through."""
    rows: int
    """Of a group, filled up to whole tiles."""
    pages: int
    """That are fetched at a time."""
    size: int
    """Tokens of a page."""
    together: bool
    """Whether the tokens of all these pages are columns of one product."""
    width: int
    """Pages of a row of the table."""
    sequences: int
    tables: int
    """Batch of the tables, 1 where one serves all."""
    caches: int
    """Batch of the cache, likewise."""


class Scalars(NamedTuple):
    """What is known before any step."""

    table: Any
    """[B * S * P]"""
    sequence: Any
    """[B * N], as all that follow."""
    first: Any
    end: Any
    low: Any
    """First page that is seen."""
    high: Any
    """Page after the last."""


def attend_block(spec: Problem, sizes: Sizes, names: list[str], *refs: Any) -> None:
    """Attend from a block of queries."""
    scalars, refs = Scalars(*refs[:6]), refs[6:]
    q_ref, extras = refs[0], dict(zip(names, refs[1:], strict=False))
    refs = refs[1 + len(names) :]
    count = spec.cache.num_leaves
    cache, (out_ref, lse_ref) = refs[:count], refs[count : count + 2]
    buffers = refs[count + 2 : 2 * count + 2]
    done, slot_ref, top_ref, sum_ref, mean_ref = refs[2 * count + 2 :]
    batch, step = pl.program_id(0), pl.program_id(2)
    per_core = sizes.steps
    mine = (batch * pl.num_programs(1) + pl.program_id(1)) * per_core + step
    fetch = Fetch(sizes, scalars, batch, cache, buffers, done)
    chunks = fetch.chunks(mine)

    @pl.when(step == 0)
    def begin() -> None:
        slot_ref[0] = 0
        fetch.start(mine, 0, 0)

    _start(extras, top_ref, sum_ref, mean_ref)

    def next_one(slot: Any) -> None:
        pl.when(step + 1 < per_core)(lambda: fetch.start(mine + 1, 0, slot))

    pl.when(chunks == 0)(lambda: next_one(slot_ref[0]))

    def visit(chunk: Any, _: None) -> None:
        slot = slot_ref[0]
        more = chunk + 1 < chunks
        pl.when(more)(lambda: fetch.start(mine, chunk + 1, 1 - slot))
        pl.when(jnp.logical_not(more))(lambda: next_one(1 - slot))
        fetch.wait(mine, chunk, slot)
        begin = (scalars.low[mine] + chunk * sizes.pages) * sizes.size
        first, end = scalars.first[mine], scalars.end[mine]
        held = Held(spec, sizes, spec.cache.unflatten(buffers), slot, begin, first, end)
        state = top_ref, sum_ref, mean_ref
        whole = begin + sizes.pages * sizes.size - 1 <= first
        if spec.window is not None:
            whole &= end - 1 - begin < spec.window
        pl.when(whole)(lambda: _visit(held, q_ref, extras, state, False))
        pl.when(jnp.logical_not(whole))(lambda: _visit(held, q_ref, extras, state, True))
        slot_ref[0] = 1 - slot

    jax.lax.fori_loop(0, chunks, visit, None)
    _finish(out_ref, lse_ref, top_ref, sum_ref, mean_ref)


class Fetch:
    """Copies of pages into buffers."""

    def __init__(
        self, sizes: Sizes, scalars: Scalars, batch: Any, cache: Any, buffers: Any, done: Any
    ):
        self.sizes, self.scalars, self.batch = sizes, scalars, batch
        self.pairs, self.done = list(zip(cache, buffers, strict=True)), done

    def chunks(self, mine: Any) -> Any:
        """How many times pages are fetched for a block of queries."""
        pages = jnp.maximum(self.scalars.high[mine] - self.scalars.low[mine], 0)
        return jax.lax.div(pages + (self.sizes.pages - 1), jnp.int32(self.sizes.pages))

    def start(self, mine: Any, chunk: Any, slot: Any) -> None:
        """Start to copy a chunk's pages."""
        self._each(mine, chunk, slot, lambda copy: copy.start())

    def wait(self, mine: Any, chunk: Any, slot: Any) -> None:
        """Wait until they are there."""
        self._each(mine, chunk, slot, lambda copy: copy.wait())

    def _each(self, mine: Any, chunk: Any, slot: Any, do: Any) -> None:
        s, scalars = self.sizes, self.scalars
        begin = scalars.low[mine] + chunk * s.pages
        row = scalars.sequence[mine]
        row = (row + (self.batch * s.sequences if s.tables > 1 else 0)) * s.width
        own = self.batch if s.caches > 1 else 0

        def page(i: int) -> None:
            number = scalars.table[row + begin + i]
            for source, target in self.pairs:
                do(
                    pltpu.make_async_copy(
                        source.at[own, number], target.at[slot, i], self.done.at[slot, i]
                    )
                )

        for i in range(s.pages):
            pl.when(begin + i < scalars.high[mine])(partial(page, i))


class Held(NamedTuple):
    """A chunk of pages in a buffer."""

    spec: Problem
    sizes: Sizes
    cache: Cache
    """Of buffers."""
    slot: Any
    begin: Any
    """Position of its first token."""
    first: Any
    end: Any

    def parts(self) -> range:
        """The parts that are columns of one product each."""
        return range(1 if self.sizes.together else self.sizes.pages)

    @property
    def tokens(self) -> int:
        """Of a part."""
        return self.sizes.size * (self.sizes.pages if self.sizes.together else 1)

    def at(self, half: Pages, part: int) -> Pages:
        """Load a part of keys or values."""
        if self.sizes.together:
            wide = half.elements[self.slot].reshape(self.tokens, half.elements.shape[-1])
            return Pages(wide, None, None, None, None, half.width)
        return jax.tree.map(lambda ref: ref[self.slot, part], half)

    def inside(self, part: int) -> Array:
        """Return which of a part's tokens any query sees, [tokens, 1]."""
        j = self.begin + part * self.tokens
        j += jax.lax.broadcasted_iota(jnp.int32, (self.tokens, 1), 0)
        return seen(self.spec, self.end - 1 - j, self.spec.queries)


def _widened(pages: Pages, dtype: Any) -> Array:
    """Return a page's elements [tokens, groups * d] without the scales of tokens and channels."""
    if pages.form != NVFP4:
        return pages.elements.astype(dtype)
    signed = magnitudes(pages.elements.astype(jnp.float32))
    blocks = pages.blocks.astype(jnp.bfloat16)
    width, every = pages.elements.shape[-1], blocks.shape[0]
    parts = []
    for begin in range(0, width, LANES):
        shape = every, min(LANES, width - begin)
        row = jax.lax.broadcasted_iota(jnp.int32, shape, 0) * 16
        column = jax.lax.broadcasted_iota(jnp.int32, shape, 1) + begin
        spread = jnp.where((column >= row) & (column < row + 16), 1, 0).astype(jnp.bfloat16)
        parts.append(
            jax.lax.dot_general(
                blocks, spread, (((0,), (0,)), ((), ())), preferred_element_type=jnp.float32
            )
        )
    return (signed * jnp.concatenate(parts, axis=1)).astype(dtype)


def _visit(held: Held, q_ref: Any, extras: dict[str, Any], state: Any, masked: bool) -> None:
    """Attend to a chunk."""
    cache = held.cache
    top_ref, sum_ref, mean_ref = state
    dtype = q_ref.dtype
    logits = [_logits(held, q_ref, extras, part, masked) for part in held.parts()]
    before = top_ref[...]
    highest = [jnp.max(s, axis=1, keepdims=True) for s in logits]
    top = before
    for each in highest:
        top = jnp.maximum(top, each)
    fall = jnp.exp2(before - top)
    total = sum_ref[...] * fall
    means = [jnp.zeros((), jnp.float32)] * cache.groups
    rows, e = q_ref.shape[3], cache.values.width
    for part, s in zip(held.parts(), logits, strict=True):
        p = jnp.exp2(s - top[:, :1])
        values = held.at(cache.values, part)
        wide = _widened(values, dtype)
        if masked:
            wide = jnp.where(held.inside(part), wide, jnp.zeros_like(wide))
        if values.scales is None:
            p = p.astype(dtype)
            total += jnp.sum(p.astype(jnp.float32), axis=1, keepdims=True)
        else:
            total += jnp.sum(p, axis=1, keepdims=True)
        for g in range(cache.groups):
            w = p[g * rows : (g + 1) * rows]
            if values.scales is not None:
                w = w * values.scales[g : g + 1]
                if masked:  # what was never fetched may have any scale
                    w = jnp.where(p[g * rows : (g + 1) * rows] > 0, w, 0)
                w = w.astype(dtype)
            means[g] += jax.lax.dot_general(
                w, wide[:, g * e : (g + 1) * e], INTO, precision=precise(dtype),
                preferred_element_type=jnp.float32,
            )  # fmt: skip
    mean_ref[...] = mean_ref[...] * fall[:, :1] + jnp.concatenate(means, axis=0)
    top_ref[...], sum_ref[...] = top, total


def _logits(held: Held, q_ref: Any, extras: dict[str, Any], part: int, masked: bool) -> Array:
    """Return logits [groups * rows, tokens] of a part, in units of log 2."""
    spec, keys = held.spec, held.at(held.cache.keys, part)
    dtype = q_ref.dtype
    wide, d = _widened(keys, dtype), held.cache.keys.width
    plain = spec.soft_cap is None and "slopes" not in extras
    scale = spec.scale * (LOG2E if plain else 1.0)
    found = []
    for g in range(held.cache.groups):
        q, part_of = q_ref[0, 0, g], slice(g * d, (g + 1) * d)
        if keys.channels is not None:
            q = (q.astype(jnp.float32) * keys.channels[:, part_of]).astype(dtype)
        s = jax.lax.dot_general(
            q, wide[:, part_of], WIDE, precision=precise(dtype),
            preferred_element_type=jnp.float32,
        )  # fmt: skip
        found.append(s * scale if keys.scales is None else s * (keys.scales[g : g + 1] * scale))
    s = jnp.concatenate(found, axis=0)
    if plain and not masked:
        return s
    i = held.first
    if "query" in extras:
        i = i + extras["query"][0][:, :1]
    j = held.begin + part * held.tokens + jax.lax.broadcasted_iota(jnp.int32, s.shape, 1)
    if not plain:
        slope = extras["slopes"][0][:, :1] if "slopes" in extras else None
        s = score(spec, s, slope, (i - j).astype(jnp.float32)) * LOG2E
    return jnp.where(seen(spec, i - j), s, LOWEST) if masked else s


def _start(extras: dict[str, Any], top_ref: Any, sum_ref: Any, mean_ref: Any) -> None:
    """Begin with nothing seen, or with the sink."""
    if "sinks" in extras:
        top_ref[...] = extras["sinks"][0] * LOG2E
        sum_ref[...] = jnp.ones(sum_ref.shape, jnp.float32)
    else:
        top_ref[...] = jnp.full(top_ref.shape, LOWEST / 2, jnp.float32)
        sum_ref[...] = jnp.zeros(sum_ref.shape, jnp.float32)
    mean_ref[...] = jnp.zeros(mean_ref.shape, jnp.float32)


def _finish(out_ref: Any, lse_ref: Any, top_ref: Any, sum_ref: Any, mean_ref: Any) -> None:
    """Divide by the sums."""
    total = sum_ref[...]
    there = total > 0
    safe = jnp.where(there, total, 1)
    out = jnp.where(there[:, :1], mean_ref[...] / safe[:, :1], 0)
    out_ref[0, 0] = out.reshape(out_ref.shape[2:]).astype(out_ref.dtype)
    lse = jnp.where(there, (top_ref[...] + jnp.log2(safe)) / LOG2E, -jnp.inf)
    lse_ref[0, 0] = jnp.transpose(lse)[:1]
