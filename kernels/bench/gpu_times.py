"""Times of the kernels for GPUs on the GPU of this machine, beside cuDNN, tokamax and cuBLAS.

    python kernels/bench/gpu_times.py

Everything is first held to float64 or to the plain form, then timed by turns in one run: medians,
and the share of the peak that a large bfloat16 product reaches in the same run. Peers are those
that are installed. What does not compile or does not agree is said, and the rest goes on.
"""

import json
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from counting import RESULTS
from jaxinf_kernels import decode_attention as paged
from jaxinf_kernels.attention import attention, masks
from jaxinf_kernels.formats import E4M3, INT4, INT8, quantise
from jaxinf_kernels.lowbit_attention import PRECISIONS, lowbit_attention
from jaxinf_kernels.quantized_matmul import quantized_matmul

Rows = list[dict[str, Any]]


def main(
    tokens: int = 8192, heads: int = 16, width: int = 128, size: int = 8192, rounds: int = 20
) -> None:
    """Check and time all, and keep the figures under the GPU's name.

    Args:
      tokens: of attention; decoding reads a cache of as many for each of 64 sequences.
      heads: of attention.
      width: of a head.
      size: of square products.
      rounds: timings of each function.
    """
    device = jax.devices()[0]
    if device.platform not in ("gpu", "cuda"):
        raise SystemExit(f"there is no GPU here but {device}: nothing was timed.")
    key = jax.random.key(0)
    square = jax.random.normal(key, (size, size), jnp.bfloat16)
    peak = 2 * size**3 / median({"peak": (jnp.matmul, (square, square))}, rounds)["peak"]
    print(f"{device.device_kind}: {peak / 1e12:.0f} TFLOP/s in a product of bfloat16", flush=True)
    rows: Rows = []
    for causal in (False, True):
        rows += attentions(key, tokens, heads, width, causal, rounds, peak)
    rows += products(key, size, rounds, peak)
    rows += few_rows(key, size, rounds)
    rows += decoding(key, tokens, width, rounds)
    RESULTS.mkdir(exist_ok=True)
    found = {"device": device.device_kind, "jax": jax.__version__, "peak": peak, "rows": rows}
    name = device.device_kind.lower().replace(" ", "_")
    (RESULTS / f"gpu_{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def attentions(
    key: Any, tokens: int, heads: int, width: int, causal: bool, rounds: int, peak: float
) -> Rows:
    """Attention forwards and in reverse, in bfloat16 and in few bits."""
    q, k, v = jax.random.normal(key, (3, tokens, heads, width), jnp.bfloat16)
    mask = masks.causal() if causal else None
    ours = partial(attention, mask=mask, implementation="gpu")
    plain = partial(attention, mask=mask, implementation="xla")
    functions: dict[str, Callable[..., Any]] = {
        "jaxinf": ours,
        "cuDNN": partial(jax.nn.dot_product_attention, is_causal=causal, implementation="cudnn"),
        "XLA": plain,
    }
    if find_spec("tokamax"):
        import tokamax

        functions["tokamax"] = partial(tokamax.dot_product_attention, is_causal=causal)
    for name in ("sage8", "sage8_fp8", "fp8"):
        functions[f"jaxinf {name}"] = partial(
            lowbit_attention, precision=PRECISIONS[name], mask=mask, implementation="gpu"
        )
    work = 4 * tokens**2 * heads * width / (2 if causal else 1)
    title = f"attention{', causal' if causal else ''}"
    rows = timed(title, functions, (q, k, v), "XLA", work, rounds, peak)

    def reverse(function: Callable[..., Any]) -> Callable[..., Any]:
        def total(*arrays: Any) -> Any:
            return jnp.sum(function(*arrays).astype(jnp.float32))

        return jax.grad(total, (0, 1, 2))

    peers = [name for name in functions if not name.startswith("jaxinf ")]
    back = {name: reverse(functions[name]) for name in peers}
    return rows + timed(
        f"{title}, value and reverse", back, (q, k, v), "XLA", 3.5 * work, rounds, peak
    )


def products(key: Any, size: int, rounds: int, peak: float) -> Rows:
    """Quantised products beside cuBLAS' in bfloat16."""
    x, w = jax.random.normal(key, (2, size, size), jnp.bfloat16)
    functions: dict[str, Callable[..., Any]] = {"cuBLAS bfloat16": lambda x, w, *_: x @ w}
    held = []
    for name, form in (("w8a8", INT8), ("fp8", E4M3)):
        pair = quantise(x, form, axis=-1), quantise(w, form, axis=-2)
        place = len(held)
        held.append(pair)

        def call(x: Any, w: Any, *held: Any, place: int = place) -> Any:
            return quantized_matmul(*held[place], out_dtype=jnp.bfloat16, implementation="gpu")

        functions[name] = call
    args = (x, w, *held)
    return timed("product", functions, args, "cuBLAS bfloat16", 2 * size**3, rounds, peak)


def few_rows(key: Any, size: int, rounds: int) -> Rows:
    """Sixteen rows by weights of four bits: bytes of the weights a second."""
    x, w = jax.random.normal(key, (16, size), jnp.bfloat16), jnp.ones((size, size), jnp.bfloat16)
    held = quantise(w, INT4, axis=-2, block=128)
    functions: dict[str, Callable[..., Any]] = {
        "jaxinf w4a16 g128": lambda x, w, held: quantized_matmul(x, held, implementation="gpu"),
        "cuBLAS bfloat16": lambda x, w, held: x @ w,
    }
    rows = timed("16 rows", functions, (x, w, held), "cuBLAS bfloat16", 1.0, rounds, 1.0)
    for row in rows:
        if row.pop("share of peak", None):
            own = held.elements.size // 2 + held.scales.nbytes
            read = own if row["by"].startswith("jaxinf") else w.nbytes
            row["bytes a second"] = 1e3 * read / row["milliseconds"]
    return rows


def decoding(key: Any, tokens: int, width: int, rounds: int) -> Rows:
    """One token of 64 sequences: bytes of the cache a second."""
    sequences, groups, page = 64, 8, 64
    pages = tokens // page
    rows: Rows = []
    for form in (None, INT8, E4M3, INT4):
        cache = paged.empty(sequences * pages, page, groups, width, form=form)
        table = jnp.arange(sequences * pages, dtype=jnp.int32).reshape(sequences, pages)
        q = jax.random.normal(key, (sequences, 4 * groups, width), jnp.bfloat16)
        args = q, cache, table, jnp.full(sequences, tokens, jnp.int32)
        run = {"jaxinf": partial(paged.decode_attention, implementation="gpu"),
               "XLA": partial(paged.decode_attention, implementation="xla")}  # fmt: skip
        size = sum(a.nbytes for a in jax.tree.leaves(cache))
        found = timed(f"decoding, {form or 'bfloat16'}", run, args, "XLA", size, rounds, 1.0)
        for row in found:
            row["bytes a second"] = row.pop("share of peak", None)
        rows += found
    return rows


def timed(
    title: str, functions: dict[str, Callable[..., Any]], args: Any, base: str, work: float,
    rounds: int, peak: float,
) -> Rows:  # fmt: skip
    """Hold functions to the base, time those that run, and return a row each."""
    ready: dict[str, tuple[Any, Any]] = {}
    rows: Rows = []
    values: dict[str, Any] = {}
    for name, function in functions.items():
        try:
            compiled = jax.jit(function).lower(*args).compile()
            values[name] = jax.block_until_ready(compiled(*args))
            ready[name] = compiled, args
        except Exception as error:
            rows.append({"what": title, "by": name, "error": str(error).splitlines()[0][:200]})
            print(rows[-1], flush=True)
    seconds = median(ready, rounds)
    for name, taken in seconds.items():
        row: dict[str, Any] = {"what": title, "by": name, "milliseconds": 1e3 * taken}
        row["share of peak"] = work / taken / peak
        if base in values:
            row["apart"] = apart(values[name], values[base])
        rows.append(row)
        print(row, flush=True)
    return rows


def apart(found: Any, base: Any) -> float:
    """Return the largest relative distance of two results' arrays."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(base), strict=True)
    wide = [(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs]
    return max(float(np.linalg.norm(a - b) / (np.linalg.norm(b) + 1e-30)) for a, b in wide)


def median(functions: dict[str, tuple[Any, Any]], rounds: int) -> dict[str, float]:
    """Return the median seconds of functions that are timed by turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 2):
        for name, (function, args) in functions.items():
            started = time.perf_counter()
            jax.block_until_ready(function(*args))
            if number > 1:
                times[name].append(time.perf_counter() - started)
    return {name: float(np.median(found)) for name, found in times.items()}


if __name__ == "__main__":
    tyro.cli(main)
