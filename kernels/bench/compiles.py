"""What compilers say of every operation, for the chips that they are given.

    python kernels/bench/compiles.py --chips v5e h200

For TPUs a program for each operation and format, forwards and in reverse; for GPUs the cases of
tests/kernels/*_compiles_gpu.py, in a process of their own. Nothing is run.
"""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import tyro
from counting import keep
from jaxinf_kernels import decode_attention as paged
from jaxinf_kernels.attention import attention, masks
from jaxinf_kernels.chips import CHIPS
from jaxinf_kernels.formats import E4M3, INT4, INT8, MXFP4, MXFP8, NVFP4, quantise
from jaxinf_kernels.grouped_matmul import grouped_matmul
from jaxinf_kernels.lowbit_attention import PRECISIONS, lowbit_attention
from jaxinf_kernels.quantized_matmul import quantized_matmul
from jaxinf_kernels.static import cuda

TESTS = Path(__file__).parents[2] / "tests" / "kernels"
OPERATIONS = ("attention", "lowbit_attention", "decode_attention", "quantized_matmul",
              "grouped_matmul")  # fmt: skip


def cases() -> list[tuple[str, Any, Any]]:
    """Return a case for each operation, format and direction, for TPUs."""
    of = jax.ShapeDtypeStruct
    q = of((1024, 4, 128), jnp.bfloat16)
    found: list[tuple[str, Any, Any]] = []

    def both(name: str, call: Any, *args: Any) -> None:
        def total(*arrays: Any) -> Any:
            return jnp.sum(call(*arrays).astype(jnp.float32))

        found.append((name, call, args))
        found.append((f"{name}, reverse", jax.grad(total), args))

    both("attention", partial(attention, mask=masks.causal()), q, q, q)
    for name, precision in PRECISIONS.items():
        call = partial(lowbit_attention, precision=precision, mask=masks.causal())
        found.append((f"lowbit_attention {name}", call, (q, q, q)))
    for form in (None, INT8, E4M3, INT4, NVFP4):
        cache = jax.eval_shape(partial(paged.empty, 256, 128, 4, 128, form=form))
        whole = of((8,), jnp.int32)
        args = of((8, 16, 128), jnp.bfloat16), cache, of((8, 32), jnp.int32), whole
        found.append((f"decode_attention {form or 'bfloat16'}", paged.decode_attention, args))
    x = of((1024, 2048), jnp.bfloat16)
    for form, own in (
        (INT8, INT8), (INT8, None), (INT4, None), (E4M3, E4M3), (MXFP8, MXFP8), (MXFP4, MXFP4),
        (NVFP4, NVFP4),
    ):  # fmt: skip
        w = jax.eval_shape(partial(quantise, form=form, axis=-2), of((2048, 2048), jnp.bfloat16))
        name = f"quantized_matmul {form} by {own or 'bfloat16'}"
        both(name, partial(quantized_matmul, activations=own), x, w)
    experts, sizes = of((8, 2048, 2048), jnp.bfloat16), of((8,), jnp.int32)
    both("grouped_matmul", grouped_matmul, x, experts, sizes)
    both("grouped_matmul int8", partial(grouped_matmul, form=INT8), x, experts, sizes)
    return found


def main(chips: tuple[str, ...] = ("v4", "v5e", "v5p", "v6e", "tpu7x", "h200", "b200")) -> None:
    """Compile for chips, each in a process of its own.

    Args:
      chips: names of TPUs and GPUs.
    """
    for chip in chips:
        modules = ["compiles:cases"]
        if chip in cuda.TARGETS:
            kind = CHIPS[chip].generation
            modules = [f"test_{name}_compiles_gpu:{kind}" for name in OPERATIONS]
        for module in modules:
            rows = compiled(module, chip)
            operation = module.removeprefix("test_").partition("_compiles")[0]
            for row in rows:
                row["name"] = row["name"] if operation not in OPERATIONS else (
                    f"{operation}: {row['name']}"
                )  # fmt: skip
                row["sizes"] = []
                kernels = row.pop("kernels", [])
                row["spills"] = sum(kernel["spills"] for kernel in kernels)
                registers = [k["registers"] for k in kernels if "registers" in k]
                row |= {"registers": max(registers)} if registers else {}
            keep("compiles", rows)


def compiled(module: str, chip: str) -> list[dict[str, Any]]:
    """Return what the compiler says of a function's cases."""
    paths = [str(Path(__file__).parent), str(TESTS)]
    with tempfile.TemporaryDirectory() as where:
        result = Path(where) / "found.json"
        command = [sys.executable, "-m", "jaxinf_kernels.static", module, "--chip", chip]
        environment = dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=os.pathsep.join(paths))
        subprocess.run([*command, "--json", str(result)], env=environment, check=False)
        return json.loads(result.read_text()) if result.exists() else []


if __name__ == "__main__":
    tyro.cli(main)
