"""Attention to a paged cache on an NVIDIA GPU: what a thread block does.

A block of threads is one warpgroup. It has some rows of one group's queries and one part of a
sequence, of which it fetches ``tokens`` at a time into a ring of shared memory, by copies that run
on their own; a part's sum goes out as it is, and parts are merged outside. Products are those of a
warp (``mma``), which Hopper and Blackwell both have, with the tokens down and the queries across:
so one query costs an eighth of a tile, keys come into registers as they lie and are widened there,
and values are read transposed, by ``ldmatrix``.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Array

from jaxinf_kernels.decode_attention.cache import magnitudes
from jaxinf_kernels.decode_attention.gpu_places import Bounds, Half, Inputs, Place, Sizes
from jaxinf_kernels.decode_attention.problem import Problem, score, seen

LOWEST = -0.7 * float(np.finfo(np.float32).max)
"""Logits of what is not seen. Running maxima start from half of it: so the weight of what is not
seen is zero, also where nothing has been."""
LOG2E = float(np.log2(np.e))
WIDE = jnp.bfloat16
"""What is multiplied."""
LEFT = plgpu.Layout.MMA_LHS(WIDE)
RIGHT = plgpu.Layout.MMA_RHS(WIDE)
SUM = plgpu.Layout.MMA_ACC(WIDE)
"""How the operands of a product, and what it is added to, lie in registers."""
DOWN, ACROSS = SUM.reduce(1), SUM.reduce(0)
"""A number for each token, and for each query."""
BLOCK = 16
"""Numbers that share a scale in NVFP4."""


class State(NamedTuple):
    """Of the softmax, for each query."""

    top: Any
    """[rows]: the highest logit, in units of log 2."""
    total: Any
    """[rows]: sum of weights."""
    mean: Any
    """[e, rows]: sum of weighted values."""


def transforms(width: int, dtype: Any) -> Any:
    """Return tiling and swizzle of rows of so many numbers."""
    bits = jax.dtypes.itemsize_bits(dtype)
    swizzle = plgpu.find_swizzle(width * bits)
    return plgpu.TilingTransform((8, 8 * swizzle // bits)), plgpu.SwizzleTransform(swizzle)


def added(total: Any, a: Any, b: Any, interpret: bool) -> Any:
    """Return total + a @ b; interpret mode has no rule for a warp's product, so it is JAX's."""
    if not interpret:
        return plgpu.mma(total, a, b)
    wide = (x.astype(total.dtype) for x in (a, b))
    return total + lax.dot(*wide, precision=lax.Precision.HIGHEST)


def zeros(shape: tuple[int, ...], layout: Any, number: float = 0) -> Any:
    """Return an array of one number in a layout."""
    return plgpu.layout_cast(jnp.full(shape, number, jnp.float32), layout)


def attend_part(spec: Problem, sizes: Sizes, inputs: Inputs, outs: Any, scratch: Any) -> None:
    """Attend from some rows to a part of a sequence."""
    q_ref, weights_ref, wide_ref, keys, values, full, ready = scratch
    at = Place.here(sizes)
    fetch = Fetch(spec, sizes, at, inputs, keys, values, full)
    plgpu.copy_gmem_to_smem(inputs.q.at[pl.ds(at.queries * sizes.rows, sizes.rows)], q_ref, ready)
    bounds = Bounds.of(spec, sizes, at, inputs.scalars)
    for ahead in range(sizes.stages - 1):
        chunk = bounds.low + ahead
        pl.when(chunk < bounds.high)(partial(fetch.start, bounds, chunk, None))
    plgpu.barrier_wait(ready)
    slopes = None
    if inputs.slopes is not None:
        slopes = plgpu.load(inputs.slopes.at[at.slopes], layout=ACROSS, optimized=False)
    held = Held(spec, sizes, bounds, fetch, q_ref, weights_ref, wide_ref, keys, values, slopes)
    state = State(
        zeros((sizes.rows,), ACROSS, LOWEST / 2),
        zeros((sizes.rows,), ACROSS),
        zeros((sizes.e, sizes.rows), SUM),
    )
    carry = state, fetch.numbers(bounds, bounds.low + sizes.stages - 1)
    if spec.window is not None:
        carry = lax.fori_loop(bounds.low, bounds.begin, held.visit(True), carry)
    carry = lax.fori_loop(bounds.begin, bounds.end, held.visit(False), carry)
    state, _ = lax.fori_loop(bounds.end, bounds.high, held.visit(True), carry)
    for ref, value in zip(outs, state, strict=True):
        plgpu.store(ref.at[at.result], value, optimized=False)


class Fetch(NamedTuple):
    """Copies of pages into shared memory."""

    spec: Problem
    sizes: Sizes
    at: Place
    inputs: Inputs
    keys: Half
    values: Half
    full: Any

    def numbers(self, bounds: Bounds, chunk: Any) -> tuple[Any, ...]:
        """Return the pages of a fetch: of what lies beyond the sequence its last."""
        sizes = self.sizes
        count = max(1, sizes.tokens // sizes.page)
        before = lax.div(chunk * sizes.tokens, jnp.int32(sizes.page))
        found = []
        for i in range(count):
            page = jnp.clip(before + i, 0, jnp.maximum(bounds.pages - 1, 0))
            found.append(self.inputs.table[bounds.row + page])
        return tuple(found)

    def start(self, bounds: Bounds, chunk: Any, numbers: Any = None) -> None:
        """Start to copy a fetch's pages."""
        sizes, at = self.sizes, self.at
        slot = lax.rem(chunk - bounds.low, jnp.int32(sizes.stages))
        along = min(sizes.page, sizes.tokens)
        offset = 0
        if sizes.page > sizes.tokens:
            offset = lax.rem(chunk * sizes.tokens, jnp.int32(sizes.page))
        bar = self.full.at[slot]
        for i, number in enumerate(numbers or self.numbers(bounds, chunk)):
            page = number + (at.example * sizes.pages if sizes.own[3] else 0)
            there = pl.ds(i * along, along)
            row = pl.ds(page * sizes.page + offset, along)
            for source, target, width in (
                (self.inputs.keys, self.keys, sizes.d),
                (self.inputs.values, self.values, sizes.e),
            ):
                mine = pl.ds(at.group * width, width)
                plgpu.copy_gmem_to_smem(
                    source.elements.at[row, mine], target.elements.at[slot, there], bar
                )
                group = page * sizes.groups + at.group
                if source.scales is not None:
                    plgpu.copy_gmem_to_smem(
                        source.scales.at[group, pl.ds(offset, along)],
                        target.scales.at[slot, there], bar,
                    )  # fmt: skip
                if source.blocks is not None:
                    every = width // BLOCK
                    plgpu.copy_gmem_to_smem(
                        source.blocks.at[pl.ds(group * every, every), pl.ds(offset, along)],
                        target.blocks.at[slot], bar,
                    )  # fmt: skip
                if source.channels is not None:
                    plgpu.copy_gmem_to_smem(
                        source.channels.at[page, mine], target.channels.at[slot], bar
                    )


class Held(NamedTuple):
    """What a visit needs."""

    spec: Problem
    sizes: Sizes
    bounds: Bounds
    fetch: Fetch
    q: Any
    weights: Any
    wide: Any
    keys: Half
    values: Half
    slopes: Any

    def visit(self, masked: bool) -> Callable[[Any, Any], Any]:
        """Return the visit of a fetch, of which some tokens may not be seen."""

        def visit(chunk: Any, carry: Any) -> Any:
            return self._visit(chunk, carry, masked)

        return visit

    def _visit(self, chunk: Any, carry: Any, masked: bool) -> Any:
        sizes, state = self.sizes, carry[0]
        slot = lax.rem(chunk - self.bounds.low, jnp.int32(sizes.stages))
        plgpu.barrier_wait(self.fetch.full.at[slot])
        s = self._logits(chunk, slot, masked)
        top = jnp.maximum(state.top, jnp.max(s, axis=0))
        p = jnp.exp2(s - across(top, s.shape))
        fall = jnp.exp2(state.top - top)
        w = p
        if self.values.scales is not None:
            scales = plgpu.load(self.values.scales.at[slot], layout=DOWN)
            w = w * down(scales, w.shape)
            if masked:  # what was never written may have any scale
                w = jnp.where(p > 0, w, 0)
        w = w.astype(WIDE)
        summed = w.astype(jnp.float32) if self.values.scales is None else p
        total = state.total * fall + jnp.sum(summed, axis=0)
        self.weights[...] = w
        self._widen(slot)
        plgpu.commit_smem()
        # every warp has read the stage before this one, so it can be filled again
        ahead = chunk + (sizes.stages - 1)
        pl.when(ahead < self.bounds.high)(partial(self.fetch.start, self.bounds, ahead, carry[1]))
        numbers = self.fetch.numbers(self.bounds, ahead + 1)
        source = self.values.elements.at[slot] if self.wide is None else self.wide
        v = plgpu.load(source.transpose((1, 0)), layout=LEFT)
        if masked:
            v = jnp.where(self._inside(chunk), v, jnp.zeros_like(v))
        mean = state.mean * across(fall, state.mean.shape)
        mean = added(mean, v, plgpu.load(self.weights, layout=RIGHT), sizes.interpret)
        return State(top, total, mean), numbers

    def _inside(self, chunk: Any) -> Array:
        """Return which of a fetch's tokens any query sees, [e, tokens]."""
        j = plgpu.broadcasted_iota(jnp.int32, (self.sizes.e, self.sizes.tokens), 1, layout=LEFT)
        distance = (self.bounds.last - 1 - chunk * self.sizes.tokens) - j
        return seen(self.spec, distance, self.spec.queries)

    def _logits(self, chunk: Any, slot: Any, masked: bool) -> Array:
        """Return logits [tokens, rows] in units of log 2."""
        spec, sizes = self.spec, self.sizes
        shape = sizes.tokens, sizes.rows
        plain = spec.soft_cap is None and self.slopes is None
        s = self._products(slot) * (spec.scale * (LOG2E if plain else 1.0))
        if self.keys.scales is not None:
            s = s * down(plgpu.load(self.keys.scales.at[slot], layout=DOWN), shape)
        if plain and not masked:
            return s
        j = plgpu.broadcasted_iota(jnp.int32, shape, 0, layout=SUM) + chunk * sizes.tokens
        distance = self.bounds.first - j
        if spec.queries > 1:
            row = plgpu.broadcasted_iota(jnp.int32, shape, 1, layout=SUM)
            row = row + self.fetch.at.tile * sizes.rows
            distance = distance + lax.div(row, jnp.full_like(row, sizes.repeats))
        if not plain:
            slope = None if self.slopes is None else across(self.slopes, shape)
            s = score(spec, s, slope, distance.astype(jnp.float32)) * LOG2E
        return jnp.where(seen(spec, distance), s, LOWEST) if masked else s

    def _products(self, slot: Any) -> Array:
        """Return products [tokens, rows] of keys, without their tokens' scales, with queries."""
        sizes = self.sizes
        s = zeros((sizes.tokens, sizes.rows), SUM)
        k = widened(plgpu.load(self.keys.elements.at[slot], layout=LEFT), sizes.places)
        q = plgpu.load(self.q.transpose((1, 0)), layout=RIGHT)
        if self.keys.channels is not None:
            channels = plgpu.load(self.keys.channels.at[slot], layout=RIGHT.reduce(1))
            q = (q.astype(jnp.float32) * down(channels, q.shape)).astype(WIDE)
        if self.keys.blocks is None:
            return added(s, k, q, sizes.interpret)
        for c in range(sizes.d // BLOCK):
            part = slice(c * BLOCK, (c + 1) * BLOCK)
            none = zeros(s.shape, SUM)
            scale = plgpu.load(self.keys.blocks.at[slot, c], layout=DOWN).astype(jnp.float32)
            s = s + added(none, k[:, part], q[part], sizes.interpret) * down(scale, s.shape)
        return s

    def _widen(self, slot: Any) -> None:
        """Widen values, with the scales of their blocks, where they are in few bits."""
        if self.wide is None:
            return
        v = widened(plgpu.load(self.values.elements.at[slot], layout=SUM), self.sizes.places)
        if self.values.blocks is not None:
            parts = []
            for c in range(self.sizes.e // BLOCK):
                scale = plgpu.load(self.values.blocks.at[slot, c], layout=DOWN)
                part = v[:, c * BLOCK : (c + 1) * BLOCK]
                parts.append(part * down(widened(scale), part.shape))
            v = jnp.concatenate(parts, axis=1)
        self.wide[...] = v


def widened(elements: Any, places: bool = False) -> Any:
    """Return elements as they are multiplied, exactly, without any scale.

    Args:
      elements: of a cache, or E4M3 scales.
      places: whether they are NVFP4's places in the order of magnitudes.
    """
    if elements.dtype == WIDE:
        return elements
    if elements.dtype == jnp.float8_e4m3fn:  # Hopper goes to bfloat16 by way of float32
        return elements.astype(jnp.float32).astype(WIDE)
    wide = elements.astype(WIDE)
    return magnitudes(wide) if places else wide


def down(column: Any, shape: tuple[int, ...]) -> Any:
    """Spread a number for each row."""
    return lax.broadcast_in_dim(column, shape, (0,))


def across(row: Any, shape: tuple[int, ...]) -> Any:
    """Spread a number for each column."""
    return lax.broadcast_in_dim(row, shape, (1,))
