"""Products' schedules on TPUs that are not here: every format beside bfloat16.

    python kernels/bench/matmul_schedules.py --chips v5e v6e

Bundles of the schedule times how often they are passed, for rows [2048, 4096] by [4096, 4096], each
format at its blocks of the table.
Predictions: nothing is run, and waiting for memory is left out.
"""

from collections.abc import Iterator
from functools import partial
from typing import Any

from jaxinf_kernels.static import tpu as static

static.folder()  # before libtpu starts

import dataclasses  # noqa: E402

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import tyro  # noqa: E402
from counting import Case, Visits, best, keep, sweep  # noqa: E402
from jaxinf_kernels.chips import chip_named  # noqa: E402
from jaxinf_kernels.formats import (  # noqa: E402
    E4M3,
    INT4,
    INT8,
    MXFP4,
    MXFP8,
    NVFP4,
    quantise,
)
from jaxinf_kernels.quantized_matmul import blocks as sizes  # noqa: E402
from jaxinf_kernels.quantized_matmul import quantized_matmul  # noqa: E402

N, K, M = 2048, 4096, 4096
G128 = dataclasses.replace(INT4, block=128)
FORMATS = {
    "bfloat16": (None, None, sizes.WIDENED), "w8a8": (INT8, INT8, sizes.ELEMENTS),
    "w4a4": (INT4, INT4, sizes.ELEMENTS), "fp8": (E4M3, E4M3, sizes.ELEMENTS),
    "w8a16": (INT8, None, sizes.WIDENED), "w4a16 g128": (G128, None, sizes.WIDENED),
    "mxfp8": (MXFP8, MXFP8, sizes.SPREAD), "mxfp4": (MXFP4, MXFP4, sizes.SPREAD),
    "nvfp4": (NVFP4, NVFP4, sizes.SPREAD),
}  # fmt: skip


def products(chip: str) -> Iterator[Case]:
    """Go over formats."""
    for name, (form, own, kind) in FORMATS.items():
        pieces = sizes.blocks_for(chip_named(chip), kind)
        depth, full = sizes.depth_of(K, pieces.depth, 128)
        tiles = -(-N // pieces.rows) * -(-M // pieces.columns)
        steps = tiles * (full // depth)
        x, w = (jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in ((N, K), (K, M)))
        x, w = (
            a if f is None else jax.eval_shape(partial(quantise, form=f, axis=axis), a)
            for a, f, axis in ((x, own, -1), (w, form, -2))
        )

        def call(x: Any, w: Any) -> Any:
            return quantized_matmul(x, w, out_dtype=jnp.bfloat16)

        visits = Visits(1, steps, (steps,), (tiles,), (tiles,))
        yield Case(name, tuple(pieces), call, (x, w), {"quantized_matmul": visits})


def main(chips: tuple[str, ...] = ("v5e", "v5p", "v6e", "tpu7x")) -> None:
    """Count products on chips.

    Args:
      chips: names of TPUs.
    """
    for chip in chips:
        rows = sweep(products(chip), chip)
        base = best(rows)["bfloat16"]["bundles"]
        for row in rows:
            if "bundles" in row:
                row["of_bfloat16"] = round(row["bundles"] / base, 3)
                print(f"{chip} {row['name']}: {row['of_bfloat16']} of bfloat16's bundles")
        keep("matmul_schedules", rows)


if __name__ == "__main__":
    tyro.cli(main)
