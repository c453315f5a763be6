"""The plain form of attention on this machine, beside jax.nn.dot_product_attention.

    python kernels/bench/attention_cpu.py

Both are compiled functions of the same arrays, timed by turns in one run; memory is what the
compiler sets aside beside arguments and results.
"""

import json
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from counting import RESULTS
from jaxinf_kernels.attention import attention, masks


def main(
    lengths: tuple[int, ...] = (64, 256, 1024, 2048, 4096, 8192),
    heads: int = 4,
    width: int = 64,
    rounds: int = 5,
    dtype: str = "float32",
) -> None:
    """Time both at several lengths.

    Args:
      lengths: of queries and keys.
      heads: of both.
      width: of a head.
      rounds: timings of each, taken by turns; the ratio is that of the medians.
      dtype: of the arrays.
    """
    rows = []
    for length in lengths:
        keys = jax.random.split(jax.random.key(0), 3)
        arrays = [jax.random.normal(k, (length, heads, width), jnp.dtype(dtype)) for k in keys]
        for causal in (False, True):
            row = compare(arrays, causal, rounds)
            rows.append({"length": length, "causal": causal, "dtype": dtype} | row)
            print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"attention_cpu_{dtype}.json").write_text(json.dumps(rows, indent=1) + "\n")


def compare(arrays: list[jax.Array], causal: bool, rounds: int) -> dict[str, Any]:
    """Return the ratios of time and memory, and how far the results are apart."""
    mask = masks.causal() if causal else None
    ours = jax.jit(lambda *args: attention(*args, mask=mask)).lower(*arrays).compile()
    theirs = jax.jit(lambda *args: jax.nn.dot_product_attention(*args, is_causal=causal))
    peer = theirs.lower(*arrays).compile()
    apart = float(jnp.max(jnp.abs(ours(*arrays) - peer(*arrays))))
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for function, taken in zip((ours, peer), times, strict=True):
            repeats = max(1, int(2**22 / arrays[0].shape[0] ** 2))
            started = time.perf_counter()
            for _ in range(repeats):
                jax.block_until_ready(function(*arrays))
            taken.append((time.perf_counter() - started) / repeats)
    own, other = (float(np.median(found)) for found in times)
    found: list[Any] = [compiled.memory_analysis() for compiled in (ours, peer)]
    memory = [one.temp_size_in_bytes for one in found]
    return {
        "milliseconds": round(1e3 * own, 3), "peer_milliseconds": round(1e3 * other, 3),
        "time": round(own / other, 3), "memory": round(memory[0] / max(1, memory[1]), 3),
        "bytes": memory[0], "difference": apart,
    }  # fmt: skip


if __name__ == "__main__":
    tyro.cli(main)
