"""Attention's kernels compiled by ptxas for GPUs that are not here."""

import jax
import jax.numpy as jnp
import pytest
from jaxinf_kernels.attention import attention, masks

SPILLED = 64
"""Bytes that ptxas may keep in memory for want of registers, of all kernels of a case."""
RICH = 640
"""As ``SPILLED``, where a bias, cells, slopes, segments and a soft cap meet in one kernel."""


def _shaped(*shape, dtype=jnp.bfloat16):
    return jax.ShapeDtypeStruct(shape, dtype)


def _gradients(chip, *arrays, **options):
    """The value and the gradients of the first three arrays, by kernels where there are some."""

    def loss(q, k, v, *rest):
        made = {name: option(*rest) for name, option in options.items()}
        out = attention(q, k, v, implementation="gpu", chip=chip, **made)
        return jnp.sum(jnp.square(out.astype(jnp.float32)))

    return jax.value_and_grad(loss, (0, 1, 2))(*arrays)


def blackwell():
    """As :func:`cases`, for a b200."""
    return hopper("b200")


def hopper(chip="h200"):
    """Return (name, function, arguments) by which the kernels are compiled."""

    def case(name, widths, rest=(), dtype=jnp.bfloat16, n=1024, m=1024, **options):
        d, e = widths
        arrays = [_shaped(*shape, dtype=dtype) for shape in ((n, 4, d), (m, 2, d), (m, 2, e))]
        return name, lambda *args: _gradients(chip, *args, **options), (*arrays, *rest)

    def packed(ids, *_):
        return masks.causal() & masks.segments(ids)

    def everything(ids, length, cells, *_):
        mask = masks.segments(ids, ids[:900]) & masks.chunks(100) & masks.cells(cells)
        return mask | masks.window(60, 30) & masks.lengths(keys=length)

    ids = _shaped(1024, dtype=jnp.int32)
    rich = (
        _shaped(1000, dtype=jnp.int32), _shaped(dtype=jnp.int32), _shaped(1000, 900, dtype=bool),
        _shaped(4, 1000, 900), _shaped(4, dtype=jnp.float32), _shaped(4, dtype=jnp.float32),
    )  # fmt: skip
    frozen = jax.lax.stop_gradient
    return [
        case("heads of 64", (64, 64), mask=lambda: masks.causal()),
        case("heads of 128", (128, 128), mask=lambda: masks.causal()),
        case("heads of 192 and 128", (192, 128), mask=lambda: masks.causal()),
        case("heads of 256", (256, 256), mask=lambda: masks.causal()),
        case("packed", (128, 128), (ids,), mask=packed),
        case("float16, odd", (80, 72), n=1000, m=900, dtype=jnp.float16),
        case(
            "everything", (128, 128), rich, n=1000, m=900, mask=everything,
            bias=lambda *a: frozen(a[3]), alibi=lambda *a: frozen(a[4]),
            sinks=lambda *a: a[5], soft_cap=lambda *a: 20.0,
        ),
    ]  # fmt: skip


@pytest.mark.parametrize("chip", ["h200", "b200"])
def test_compiles(chip):
    ptxas = pytest.importorskip("ptxas")
    found = ptxas.compiled(chip, "test_attention_compiles_gpu")
    assert len(found) == len(hopper())
    for name, entry in found.items():
        assert "error" not in entry, name
        kernels = entry["kernels"]
        assert len(kernels) >= 3, name
        bound = RICH if name == "everything" else SPILLED
        assert sum(kernel["spills"] for kernel in kernels) <= bound, name
