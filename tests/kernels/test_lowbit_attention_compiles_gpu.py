import jax
import jax.numpy as jnp
import ptxas
from jaxinf_kernels import lowbit_attention as low
from jaxinf_kernels.attention import masks

SPILLED = 96
"""Bytes that ptxas keeps in memory for want of registers, of E4M3 weights with wide values and all
options at once."""


def case(name, precision, d=128, e=128, n=1024, rich=False, **options):
    """Eight heads of queries to two of keys and values."""

    def attend(q, k, v, *rest):
        more = dict(zip(("bias", "alibi", "sinks"), rest, strict=False))
        return low.lowbit_attention(
            q, k, v, precision=precision, implementation="gpu", chip="h200", return_lse=True,
            **more, **options,
        )  # fmt: skip

    shapes = (n, 8, d), (n, 2, d), (n, 2, e)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    rest = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, n), (8,), (8,))]
    return name, attend, (*arrays, *(rest if rich else []))


def cases():
    """What is compiled for Hopper."""
    found = []
    for precision in (low.SAGE8, low.SAGE8_FP8, low.FP8):
        name = f"{precision.qk}, {precision.pv}"
        options = dict(n=1000, rich=True, mask=masks.window(100, 0), soft_cap=30.0)
        found += [
            case(name, precision),
            case(f"{name}, causal, heads of 64", precision, 64, 64, mask=masks.causal()),
            case(f"{name}, values of 256, options", precision, 128, 256, **options),
        ]
    return found


def test_the_kernel_compiles():
    found = ptxas.compiled("h200", "test_lowbit_attention_compiles_gpu")
    assert len(found) == 9
    for name, entry in found.items():
        assert "error" not in entry, (name, entry)
        assert entry["own"], name
        most = SPILLED if "options" in name and "e4m3" in name else 0
        assert sum(kernel["spills"] for kernel in entry["kernels"]) <= most, (name, entry)
