"""Errors of every number format against float64, as the operations compute them on this machine.

    python kernels/bench/numerics.py

Random inputs of the standard normal law, and the same with outliers: a tenth of the keys' channels
moved by 10 and values with means of their own, four columns of rows times 20, two of the keys'
channels times 5. Means over three seeds. The plain forms round where the kernels do.
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from counting import RESULTS
from jaxinf_kernels import decode_attention as paged
from jaxinf_kernels.attention import attention, reference
from jaxinf_kernels.formats import E4M3, INT4, INT8, MXFP4, MXFP8, NVFP4, quantise
from jaxinf_kernels.lowbit_attention import PRECISIONS, lowbit_attention
from jaxinf_kernels.quantized_matmul import quantized_matmul

SEEDS = 3
G32, G128 = (dataclasses.replace(INT4, block=size) for size in (32, 128))
PRODUCTS = {
    "w8a8": (INT8, INT8), "w8a8 g128": (dataclasses.replace(INT8, block=128),) * 2,
    "w8a16": (INT8, None), "w4a16 g128": (G128, None), "w4a16 g32": (G32, None),
    "fp8": (E4M3, E4M3), "mxfp8": (MXFP8, MXFP8), "mxfp4": (MXFP4, MXFP4),
    "nvfp4": (NVFP4, NVFP4),
}  # fmt: skip
Drawn = Iterator[tuple[Any, Any]]


def main() -> None:
    """Measure all, print a row each and keep them."""
    rows = []
    cases: list[tuple[str, str, Callable[[bool], Drawn]]] = [
        ("attention", name, lambda outliers, p=p: attentions(p, outliers))
        for name, p in {"float32": None, "bfloat16": None, **PRECISIONS}.items()
    ]
    cases[0] = ("attention", "float32", lambda outliers: attentions(None, outliers, jnp.float32))
    cases += [
        ("product", name, lambda outliers, pair=pair: products(*pair, outliers))
        for name, pair in {"bfloat16": (None, None), **PRODUCTS}.items()
    ]
    cases += [
        ("cache", str(form or "bfloat16"), lambda outliers, form=form: caches(form, outliers))
        for form in (None, INT8, E4M3, INT4, NVFP4)
    ]
    for operation, name, draws in cases:
        for outliers in (False, True):
            found = [measures(out, exact) for out, exact in draws(outliers)]
            mean = {key: float(np.mean([one[key] for one in found])) for key in found[0]}
            rows.append({"operation": operation, "format": name, "outliers": outliers} | mean)
            print(rows[-1], flush=True)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "numerics.json").write_text(json.dumps(rows, indent=1) + "\n")


def measures(found: Any, exact: Any) -> dict[str, float]:
    """Return relative error, cosine, relative L1 and signal to noise in decibels."""
    a, b = (np.asarray(x, np.float64).ravel() for x in (found, exact))
    error = float(np.linalg.norm(a - b) / np.linalg.norm(b))
    cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
    l1 = float(np.abs(a - b).sum() / np.abs(b).sum())
    return {"error": error, "cosine": cosine, "l1": l1, "decibels": -20 * float(np.log10(error))}


def attentions(precision: Any, outliers: bool, dtype: Any = jnp.bfloat16) -> Drawn:
    """Yield attention of 1,024 tokens by 128 and its exact value."""
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        q, k, v = (rng.normal(size=(1024, 2, 128)) for _ in range(3))
        if outliers:
            k = k + 10.0 * (rng.random(128) < 0.1)
            v = v + 0.5 * rng.normal(size=128)
        q, k, v = (jnp.asarray(a, dtype) for a in (q, k, v))
        run = attention if precision is None else lowbit_attention
        options = {} if precision is None else {"precision": precision}
        out = jax.jit(lambda *args, run=run, options=options: run(*args, **options))(q, k, v)
        with jax.enable_x64(True):
            exact, _ = reference(*(jnp.asarray(a, jnp.float64) for a in (q, k, v)))
        yield out, exact


def products(form: Any, own: Any, outliers: bool) -> Drawn:
    """Yield products of 4,096 numbers and their exact values, of the same floats."""
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        x, w = rng.normal(size=(64, 4096)), rng.normal(size=(4096, 256))
        if outliers:
            x[:, rng.choice(4096, 4, replace=False)] *= 20
        exact = np.asarray(jnp.asarray(x, jnp.float32), np.float64) @ np.float64(np.float32(w))
        x, w = (jnp.asarray(a, jnp.float32) for a in (x, w))
        held = w.astype(jnp.bfloat16) if form is None else quantise(w, form, axis=-2)
        x = x if own is not None else x.astype(jnp.bfloat16)
        run = jax.jit(lambda x, w: quantized_matmul(x, w, activations=own, out_dtype=jnp.float32))
        yield run(x, held), exact


def caches(form: Any, outliers: bool) -> Drawn:
    """Yield attention of one token to a cache of 4,096, and its exact value."""
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        size, length = 128, 4096
        q, k, v = (rng.normal(size=(n, 4, 128)) for n in (1, length, length))
        if outliers:
            k[..., :2] *= 5
        q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in (q, k, v))
        cache = paged.empty(length // size, size, 4, 128, form=form, dtype=jnp.bfloat16)
        table = jnp.arange(length // size, dtype=jnp.int32)[None]
        tokens = jnp.arange(length, dtype=jnp.int32)
        places = paged.slots(cache, table, jnp.zeros(length, jnp.int32), tokens)
        cache = paged.write(cache, k, v, places)
        out = paged.decode_attention(q, cache, table, jnp.array([length], jnp.int32))
        with jax.enable_x64(True):
            exact, _ = reference(*(jnp.asarray(a, jnp.float64) for a in (q, k, v)))
        yield out, exact


if __name__ == "__main__":
    main()
