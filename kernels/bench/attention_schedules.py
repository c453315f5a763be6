"""Attention's schedules on TPUs that are not here, beside those of JAX's and tokamax's kernels.

    python kernels/bench/attention_schedules.py --chips v5e v6e
    python kernels/bench/attention_schedules.py --chips v6e --tune-only

Causal attention in bfloat16, 8 heads of 4,096 tokens by 128, forwards and in reverse. Every kernel
is compiled at several sizes of blocks and counted over the whole call: bundles of the schedule
times how often they are passed, and the compiler's cycles of what XLA does beside the kernel, such
as the sum of the queries' gradients that a kernel leaves in parts. ``--tune-only`` writes the table
by which attention chooses its blocks. Peers are those that are installed (``pip install tokamax``).
Predictions: nothing is run, and waiting for memory is left out.
"""

import json
from collections.abc import Callable, Iterator
from importlib.metadata import version
from itertools import product
from pathlib import Path
from typing import Any

from jaxinf_kernels.static import tpu as static

static.folder()  # before libtpu starts

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import tyro  # noqa: E402
from counting import Case, Visits, best, keep, parts, sweep, whole  # noqa: E402
from jaxinf_kernels.attention import attention, masks  # noqa: E402
from jaxinf_kernels.attention import blocks as blocks_module  # noqa: E402
from jaxinf_kernels.attention.blocks import Blocks  # noqa: E402
from jaxinf_kernels.chips import chip_named  # noqa: E402
from jaxinf_kernels.lowbit_attention import PRECISIONS, lowbit_attention  # noqa: E402
from jaxinf_kernels.lowbit_attention.blocks import blocks_for as lowbit_blocks_for  # noqa: E402

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

    names = "block_q", "block_kv", "block_kv_compute"
    given: dict[str, Any] = dict(zip(names, sizes, strict=True))
    given |= dict(zip((f"{name}_dkv" for name in names[:2]), sizes[:2], strict=True))
    pieces = peer.BlockSizes(**given, block_kv_dkv_compute=sizes[2], use_fused_bwd_kernel=True)

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


TUNED: dict[str, tuple[Pieces, ...]] = {
    "forward": ((512, 512, 512), (512, 1024, 512), (1024, 1024, 256), (1024, 1024, 512),
                (2048, 2048, 256), (2048, 2048, 512), (2048, 4096, 512)),
    "reverse": ((512, 512, 512), (512, 1024, 512), (1024, 512, 512), (1024, 1024, 512),
                (1024, 2048, 512), (2048, 1024, 512)),
}  # fmt: skip
"""Sizes that the table holds; of (2048, 2048, 256) the inner one is of the forward kernel alone."""


def tune(chip: str, sizes: tuple[Pieces, ...]) -> None:
    """Write what the parts of this package's kernels cost on a chip, of some sizes or of all."""
    path = Path(blocks_module.__file__).parent / "costs.json"
    for place, (way, every) in enumerate(TUNED.items()):
        for pieces in every:
            found = parts(list(ours(pieces))[place], chip) if pieces in sizes else None
            if found is None:
                continue
            (one,) = found.values()
            cost = {
                "step": one["step"], "full": one["bodies"][0], "masked": one["bodies"][1],
                "first": one["before"][-1], "last": one["after"][0],
                "once": sum(one["before"][:-1]) + sum(one["after"][1:]),
            }  # fmt: skip
            row = {"blocks": list(pieces), "cost": cost, "use": one["use"][0]}
            print(chip, way, row, flush=True)
            table = json.loads(path.read_text())
            own = table.setdefault(chip, {})
            own["made by"] = f"jax {jax.__version__}, libtpu {version('libtpu')}"
            held = [old for old in own.get(way, []) if old["blocks"] != row["blocks"]]
            own[way] = sorted([*held, row], key=lambda row: str(row["blocks"]))
            path.write_text(json.dumps(table, indent=1) + "\n")


def lowbit(chip: str) -> Iterator[Case]:
    """This package's low-bit kernel, at the blocks of its table."""
    q = jax.ShapeDtypeStruct((TOKENS, HEADS, WIDTH), jnp.bfloat16)
    for name in ("sage8", "sage8_block", "sage8_int8", "sage8_fp8", "fp8"):
        precision = PRECISIONS[name]
        pieces = lowbit_blocks_for(chip_named(chip), precision, masked=True)
        full, part, down, _ = blocks(*pieces[:2])

        def call(*args: Any, precision: Any = precision) -> Any:
            return lowbit_attention(*args, precision=precision, mask=masks.causal(), chip=chip)

        visits = Visits(HEADS, full + part, (full, part), (down,), (down,))
        yield Case(name, tuple(pieces), call, (q, q, q), {"lowbit_attention": visits})


def main(
    chips: tuple[str, ...] = ("v5e", "v5p", "v6e", "tpu7x"),
    peers: tuple[str, ...] = ("ours", "flash", "splash", "tokamax"),
    sizes: tuple[Pieces, ...] = (),
    tune_only: bool = False,
    lowbit_only: bool = False,
) -> None:
    """Count kernels on chips.

    Args:
      chips: names of TPUs.
      peers: whose kernels.
      sizes: of blocks: rows, columns, columns in a product; by default several.
      tune_only: write the table by which attention chooses its blocks, and compare nothing.
      lowbit_only: count low-bit attention alone.
    """
    for chip in chips:
        if tune_only:
            tune(chip, sizes or sum(TUNED.values(), ()))
            continue
        if lowbit_only:
            keep("lowbit_schedules", sweep(lowbit(chip), chip))
            continue
        cases = (
            case for name, size in product(peers, sizes or SIZES) for case in globals()[name](size)
        )
        rows = sweep(cases, chip)
        keep("attention_schedules", rows)
        least = best([row for row in rows if row["name"].startswith("jaxinf")])
        for name, row in best(rows).items():
            own = least.get("jaxinf, reverse" if name.endswith("reverse") else "jaxinf")
            share = f", {whole(row) / whole(own):.3f} of jaxinf's" if own else ""
            print(f"{chip} best {name}: {row['sizes']}, {whole(row)} bundles{share}")


if __name__ == "__main__":
    tyro.cli(main)
