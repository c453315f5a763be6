"""A paged cache of keys and values, in full precision or in few bits.

An array of pages is [pages, page_size, groups * d]: on a TPU, groups as an axis of their own would
be filled up to a whole tile. What tokens share a scale for lies with the tokens last, so that a
scale multiplies a column of logits, or of weights, and no key or value.
"""

from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4, Format, Quantised, cast, quantise

FORMS = (INT8, INT4, E4M3, NVFP4)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Pages:
    """Keys, or values, of tokens; a pytree."""

    elements: Any
    """[pages, page_size, groups * d]; of NVFP4 their places in the order of
    magnitudes with their signs, as int4: most TPUs' compilers have no numbers of that kind."""
    scales: Any
    """[pages, groups, page_size], float32: one for each token and group, or None."""
    blocks: Any
    """[pages, groups * d / 16, page_size], E4M3: NVFP4's for each 16 numbers, or None."""
    channels: Any
    """[pages, 1, groups * d], float32: one for each page and channel, or None."""
    form: Format | None = field(metadata={"static": True})
    width: int = field(metadata={"static": True})
    """Numbers of one token and group."""

    @property
    def groups(self) -> int:
        """Heads: of those of all devices the ones that are here."""
        return self.elements.shape[-1] // self.width

    @property
    def bits(self) -> float:
        """Bits that a token takes, with its share of the scales."""
        bits = 8 * self.elements.dtype.itemsize if self.form is None else self.form.bits
        total = bits * self.elements.shape[-1]
        for shared in (self.scales, self.blocks):
            total += 0 if shared is None else 8 * shared.dtype.itemsize * shared.shape[-2]
        if self.channels is not None:
            total += 32 * self.channels.shape[-1] / self.elements.shape[-2]
        return float(total)

    def widened(self, dtype: Any) -> Array:
        """Return elements [pages, page_size, groups, d] without the scales of tokens and channels.

        Those of NVFP4's blocks are in: their product with an element has six bits, and is exact.
        """
        wide = self.elements.astype(dtype)
        wide = magnitudes(wide) if self.form == NVFP4 else wide
        wide = wide.reshape(*wide.shape[:-1], self.groups, self.width)
        if self.blocks is None:
            return wide
        count, _, size = self.blocks.shape
        blocks = jnp.moveaxis(self.blocks.astype(dtype), 2, 1).reshape(
            count, size, self.groups, self.width // 16
        )
        return wide * jnp.repeat(blocks, 16, axis=-1)

    def at(self, pages: Int[Array, " n"]) -> "Pages":
        """Return some pages; numbers beyond the cache give pages that may hold anything."""
        return jax.tree.map(lambda a: a.at[pages].get(mode="clip"), self)

    def dequantise(self, dtype: Any = jnp.float32) -> Float[Array, "pages page_size groups d"]:
        """Return the numbers."""
        exact = jnp.promote_types(dtype, jnp.float32)
        wide = self.widened(exact)
        if self.scales is not None:
            wide = wide * jnp.moveaxis(self.scales, 2, 1)[..., None].astype(exact)
        if self.channels is not None:
            shape = (len(wide), 1, self.groups, self.width)
            wide = wide * self.channels.reshape(shape).astype(exact)
        return wide.astype(dtype)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Cache:
    """Keys and values of all sequences; which page is whose, a page table says. A pytree."""

    keys: Pages
    values: Pages

    @property
    def page_size(self) -> int:
        """Tokens of a page."""
        return self.keys.elements.shape[-2]

    @property
    def groups(self) -> int:
        """Heads of keys and values."""
        return self.keys.groups

    @property
    def form(self) -> Format | None:
        """The format; None in full precision."""
        return self.keys.form

    @property
    def bytes_per_token(self) -> float:
        """Bytes that a token takes, with its share of the scales."""
        return (self.keys.bits + self.values.bits) / 8


def empty(
    pages: int, page_size: int, groups: int, d: int, *, e: int | None = None,
    form: Format | None = None, dtype: Any = jnp.bfloat16,
) -> Cache:  # fmt: skip
    """Return a cache without tokens.

    Args:
      pages: how many.
      page_size: tokens of a page. On a TPU 128 or a multiple of it wastes nothing.
      groups: heads of keys and values.
      d: numbers of a key.
      e: numbers of a value; by default as many.
      form: ``INT8`` or ``E4M3`` with a scale for each token and group, ``NVFP4`` with one for each
        16 numbers besides, or ``INT4`` with a scale of keys for each page and channel, of values
        for each token and group.
      dtype: of a cache in full precision.

    Returns:
      The cache, of zeros.

    Raises:
      ValueError: for a format that no cache is held in, or blocks that do not divide a token.

    Reference:
      Z. Liu et al., "KIVI: A Tuning-Free Asymmetric 2bit Quantization for KV Cache", ICML 2024
      (channels of keys); W. Kwon et al., "Efficient Memory Management for Large Language Model
      Serving with PagedAttention", SOSP 2023 (pages).
    """
    if form is not None and form not in FORMS:
        raise ValueError(
            f"no cache is held in {form}: take one of {', '.join(map(str, FORMS))}, or None."
        )
    sizes = d, d if e is None else e
    if form == NVFP4 and any(size % 16 for size in sizes):
        raise ValueError(
            f"NVFP4's blocks of 16 do not divide keys and values of {sizes} numbers: "
            "fill them up with zeros, or take another format."
        )

    def made(size: int, by_channel: bool) -> Pages:
        ones = jnp.ones((pages, groups, page_size), jnp.float32)
        wide = groups * size
        kind = dtype if form is None else jnp.int4 if form == NVFP4 else form.dtype
        return Pages(
            jnp.zeros((pages, page_size, wide), kind),
            None if form is None or by_channel else ones,
            jnp.ones((pages, wide // 16, page_size), NVFP4.scale) if form == NVFP4 else None,
            jnp.ones((pages, 1, wide), jnp.float32) if by_channel else None,
            form,
            size,
        )

    return Cache(made(sizes[0], form == INT4), made(sizes[1], False))


def slots(
    cache: Cache,
    page_table: Int[Array, "sequences max_pages"],
    sequences: Int[Array, " n"],
    positions: Int[Array, " n"],
) -> Int[Array, " n"]:
    """Return where tokens of sequences lie in the cache; -1 for positions beyond the table."""
    size = jnp.full_like(positions, cache.page_size)
    page = jax.lax.div(positions, size)
    inside = (positions >= 0) & (page < page_table.shape[1])
    number = page_table[sequences, jnp.where(inside, page, 0)]
    return jnp.where(inside, number * size + jax.lax.rem(positions, size), -1)


def write(
    cache: Cache,
    k: Float[Array, "n groups d"],
    v: Float[Array, "n groups e"],
    slots: Int[Array, " n"],
    *,
    most_pages: int | None = None,
) -> Cache:
    """Put tokens into a cache.

    Where the scales are those of pages and channels, tokens of a page are written in their order:
    what the page holds behind the first one written is forgotten, and what it holds before is
    rounded anew in each channel whose scale grows. All other tokens keep their bits.

    Args:
      cache: which is not needed again: donate it to the compiled function.
      k: keys.
      v: values.
      slots: number of the page times the page's size plus the place in it, each at most once;
        where it lies outside of the cache (-1 say), the token is left out.
      most_pages: bound of how many pages are written to, by default one for each token: it saves
        work where tokens of a page are many and scales are those of channels.

    Returns:
      The cache.

    Raises:
      ValueError: for shapes that are not the cache's.
    """
    pages, size = cache.keys.elements.shape[:2]
    shapes = [(len(slots), cache.groups, half.width) for half in (cache.keys, cache.values)]
    if [k.shape, v.shape] != shapes:
        raise ValueError(
            f"{len(slots)} slots of this cache take keys and values of shapes {shapes[0]} and "
            f"{shapes[1]}, got {k.shape} and {v.shape}."
        )
    slots = jnp.where((slots >= 0) & (slots < pages * size), slots, pages * size)
    whole = jnp.full_like(slots, size)
    place = slots, jax.lax.div(slots, whole), jax.lax.rem(slots, whole)
    most = min(len(slots), pages) if most_pages is None else most_pages
    keys = _by_token if cache.keys.channels is None else _by_channel
    return Cache(keys(cache.keys, k, place, most), _by_token(cache.values, v, place, most))


def read(
    cache: Cache, slots: Int[Array, " n"], dtype: Any = jnp.float32
) -> tuple[Float[Array, "n groups d"], Float[Array, "n groups e"]]:
    """Return keys and values of tokens."""
    size = jnp.full_like(slots, cache.page_size)
    page, offset = jax.lax.div(slots, size), jax.lax.rem(slots, size)

    def tokens(half: Pages) -> Array:
        """Pages of one token each."""
        scales, blocks = (
            None if a is None else a[page, :, offset][..., None] for a in (half.scales, half.blocks)
        )
        channels = None if half.channels is None else half.channels[page]
        elements = half.elements[page, offset][:, None]
        one = Pages(elements, scales, blocks, channels, half.form, half.width)
        return one.dequantise(dtype)[:, 0]

    return tokens(cache.keys), tokens(cache.values)


def _by_token(pages: Pages, x: Array, place: Any, most: int) -> Pages:
    """Write tokens that have scales of their own."""
    slots, page, offset = place
    scales, blocks, elements = pages.scales, pages.blocks, x
    if pages.form is not None:
        held = _quantised(x, pages.form)
        elements = held.elements
        new = held.scales[..., 0] if held.outer is None else held.outer
        scales = scales.at[page, :, offset].set(new, mode="drop")
        if blocks is not None:
            bits = jax.lax.bitcast_convert_type(elements, jnp.int4).astype(jnp.int32)
            elements = jnp.where(bits < 0, -8 - bits, bits)
            fine = held.scales.reshape(len(x), -1)
            blocks = blocks.at[page, :, offset].set(fine, mode="drop")
    whole = pages.elements
    rows = elements.reshape(len(x), whole.shape[-1]).astype(whole.dtype)
    flat = whole.reshape(-1, whole.shape[-1]).at[slots].set(rows, mode="drop")
    return Pages(flat.reshape(whole.shape), scales, blocks, None, pages.form, pages.width)


def magnitudes(place: Array) -> Array:
    """Return E2M1's numbers: places 0 to 7 are 0, .5, 1, 1.5, 2, 3, 4 and 6, with signs."""
    return 2 * place - 0.5 * jnp.clip(place, -4, 4) - jnp.clip(place, -6, 6)


def _quantised(x: Array, form: Format) -> Quantised:
    """Hold each token and group by itself."""
    return jax.vmap(jax.vmap(lambda a: quantise(a, form)))(x)


def _by_channel(pages: Pages, x: Array, place: Any, most: int) -> Pages:
    """Write tokens that share scales with others of their page, channel by channel."""
    _, page, offset = place
    count, size, wide = pages.elements.shape
    form = INT4
    x = x.astype(jnp.float32).reshape(len(x), wide)
    touched = jnp.unique(page, size=most, fill_value=count)
    mine = jnp.searchsorted(touched, page)
    mine = jnp.where(page < count, mine, most)
    first = jnp.full(most, size).at[mine].min(offset, mode="drop")
    kept = (jnp.arange(size)[None] < first[:, None])[..., None]
    old = jnp.where(kept, pages.elements.at[touched].get(mode="clip").astype(jnp.float32), 0)
    scale = pages.channels.at[touched].get(mode="clip")
    before = scale * (jnp.max(jnp.abs(old), axis=1, keepdims=True) / form.largest)
    before = jnp.where(first[:, None, None] > 0, before, 0)
    # NaN is kept: a channel with a number that is not finite has a scale of NaN, as in formats
    top = jnp.zeros((most, wide), jnp.float32).at[mine].max(jnp.abs(x), mode="drop") / form.largest
    new = jnp.maximum(before, top[:, None])
    new = jnp.where(jnp.isfinite(new), jnp.where(new == 0, 1, new), jnp.nan)
    elements = cast(old * (scale / new), form)
    fresh = cast(x / new[:, 0].at[mine].get(mode="clip"), form)
    elements = elements.at[mine, offset].set(fresh, mode="drop")
    return Pages(
        pages.elements.at[touched].set(elements, mode="drop"),
        None,
        None,
        pages.channels.at[touched].set(new, mode="drop"),
        form,
        pages.width,
    )
