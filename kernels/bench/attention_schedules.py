"""Attention's schedules on TPUs that are not here, beside those of JAX's and tokamax's kernels.

    python kernels/bench/attention_schedules.py --chips v5e v6e

Causal attention in bfloat16, 8 heads of 4,096 tokens by 128, forwards and in reverse. Every kernel
is compiled at several sizes of blocks and counted over the whole call: bundles of the schedule
times how often they are passed. Peers are those that are installed (``pip install tokamax``).
Predictions: nothing is run, and waiting for memory is left out.
"""

from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from jaxinf_kernels.static import tpu as static

static.folder()  # before libtpu starts

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tyro  # noqa: E402
from counting import Case, Visits, best, keep, sweep  # noqa: E402
from jaxinf_kernels.attention import attention, masks  # noqa: E402
from jaxinf_kernels.attention.tpu import Blocks  # noqa: E402

HEADS, TOKENS, WIDTH = 8, 4096, 128
SIZES = ((512, 512, 512), (512, 1024, 512), (1024, 512, 512), (1024, 1024, 512),
         (1024, 1024, 1024), (1024, 2048, 512), (2048, 512, 512))  # fmt: skip
Pieces = tuple[int, int, int]


def blocks(rows: int, columns: int) -> tuple[int, int, int, int]:
    """Return how many blocks of a causal mask there are: full, in part, by rows and by columns."""
    i, j = np.arange(0, TOKENS, rows)[:, None], np.arange(0, TOKENS, columns)[None]
    some, full = j < i + rows, j + columns <= i + 1
    return int(full.sum()), int((some & ~full).sum()), len(i), j.shape[1]


def grad(call: Callable[..., Any]) -> Callable[..., Any]:
    """Return the derivative of a sum of a function."""
    return jax.grad(lambda *args: jnp.sum(call(*args).astype(jnp.float32)), (0, 1, 2))


def ours(sizes: Pieces) -> Iterator[Case]:
    """This package's kernel."""
    full, part, down, across = blocks(*sizes[:2])
    q = jax.ShapeDtypeStruct((TOKENS, HEADS, WIDTH), jnp.bfloat16)

    def call(*args: Any) -> Any:
        return attention(*args, mask=masks.causal(), blocks=Blocks(*sizes))

    steps = full + part
    visits = Visits(HEADS, steps, (full, part), (down,), (down,))
    yield Case("jaxinf", sizes, call, (q, q, q), {"attention": visits})
    visits = Visits(HEADS, steps, (full, part), (1, across), (across, 1))
    yield Case("jaxinf, reverse", sizes, grad(call), (q, q, q), {"attention_vjp": visits})


def flash(sizes: Pieces) -> Iterator[Case]:
    """JAX's flash attention."""
    from jax.experimental.pallas.ops.tpu import flash_attention as peer

    rows, columns, inner = sizes
    full, part, down, across = blocks(rows, columns)
    q = jax.ShapeDtypeStruct((1, HEADS, TOKENS, WIDTH), jnp.bfloat16)
    pieces = peer.BlockSizes(
        rows, columns, inner, 1, rows, columns, inner, rows, columns, inner, rows
    )

    def call(q: Any, k: Any, v: Any) -> Any:
        return peer.flash_attention(q, k, v, causal=True, block_sizes=pieces)

    steps, seen = down * across, (full + part,)
    visits = Visits(HEADS, steps, seen, (down,), (down,))
    yield Case("JAX flash", sizes, call, (q, q, q), {"flash": visits})


def splash(sizes: Pieces) -> Iterator[Case]:
    """JAX's splash attention."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as peer
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as mask

    pieces = peer.BlockSizes(
        **dict(zip(("block_q", "block_kv", "block_kv_compute"), sizes, strict=True)),
        **dict(zip(("block_q_dkv", "block_kv_dkv", "block_kv_dkv_compute"), sizes, strict=True)),
        use_fused_bwd_kernel=True,
    )

    def call(*args: Any) -> Any:
        shown = mask.MultiHeadMask([mask.CausalMask((TOKENS, TOKENS))] * HEADS)
        made = peer.make_splash_mha(shown, block_sizes=pieces, head_shards=1, q_seq_shards=1)
        return made(*args)

    full, part, down, across = blocks(*sizes[:2])
    yield from _splash("JAX splash", sizes, call, down * across, (full + part,))


def tokamax(sizes: Pieces) -> Iterator[Case]:
    """Tokamax's splash attention."""
    import tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_kernel as peer
    import tokamax._src.ops.experimental.tpu.splash_attention.splash_attention_mask as mask

    def call(*args: Any) -> Any:
        pieces = peer.SplashConfig(*sizes, *sizes)
        shown = mask.CausalMask((TOKENS, TOKENS))
        return peer.make_splash_mha_single_device(shown, config=pieces)(*args)

    full, part, *_ = blocks(*sizes[:2])
    yield from _splash("tokamax splash", sizes, call, full + part, (full, part))


def _splash(
    name: str, sizes: Pieces, call: Any, steps: int, bodies: tuple[int, ...]
) -> Iterator[Case]:
    *_, down, across = blocks(*sizes[:2])
    q = jax.ShapeDtypeStruct((HEADS, TOKENS, WIDTH), jnp.bfloat16)
    visits = Visits(HEADS, steps, bodies, (down,), (down,))
    yield Case(name, sizes, call, (q, q, q), {"splash_mha_fwd": visits})
    visits = Visits(HEADS, steps, bodies, (across,), (across,))
    yield Case(f"{name}, reverse", sizes, grad(call), (q, q, q), {"splash_mha_dkv": visits})


def main(
    chips: tuple[str, ...] = ("v5e", "v5p", "v6e", "tpu7x"),
    peers: tuple[str, ...] = ("ours", "flash", "splash", "tokamax"),
    sizes: tuple[Pieces, ...] = SIZES,
) -> None:
    """Count kernels on chips.

    Args:
      chips: names of TPUs.
      peers: whose kernels.
      sizes: of blocks: rows, columns, columns in a product.
    """
    for chip in chips:
        cases = (case for name, size in product(peers, sizes) for case in globals()[name](size))
        rows = sweep(cases, chip)
        keep("attention_schedules", rows)
        least = best([row for row in rows if row["name"].startswith("jaxinf")])
        for name, row in best(rows).items():
            own = least.get("jaxinf, reverse" if name.endswith("reverse") else "jaxinf")
            beside = f", {row['bundles'] / own['bundles']:.3f} of jaxinf's" if own else ""
            print(f"{chip} best {name}: {row['sizes']}, {row['bundles']} bundles{beside}")


if __name__ == "__main__":
    tyro.cli(main)
