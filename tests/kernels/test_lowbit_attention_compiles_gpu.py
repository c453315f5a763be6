import jax
import jax.numpy as jnp
import ptxas
import pytest
from jaxinf_kernels import lowbit_attention as low
from jaxinf_kernels.attention import masks
from jaxinf_kernels.formats import E4M3, MXFP4, MXFP8, NVFP4
from jaxinf_kernels.lowbit_attention import Precision

SPILLED = 96
"""Bytes that ptxas keeps in memory for want of registers, of E4M3 weights with wide values and all
options at once."""
BLACKWELL = {True: 8, False: 104}
"""As ``SPILLED``, on Blackwell: of weights in E4M3, and in bfloat16."""
REGISTERS = {True: 240, False: 168}
"""Of a thread on Blackwell, with one computing warpgroup and with two."""


def case(name, precision, d=128, e=128, n=1024, rich=False, chip="h200", **options):
    """Eight heads of queries to two of keys and values."""

    def attend(q, k, v, *rest):
        more = dict(zip(("bias", "alibi", "sinks"), rest, strict=False))
        return low.lowbit_attention(
            q, k, v, precision=precision, implementation="gpu", chip=chip, return_lse=True,
            **more, **options,
        )  # fmt: skip

    shapes = (n, 8, d), (n, 2, d), (n, 2, e)
    arrays = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
    rest = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((n, n), (8,), (8,))]
    return name, attend, (*arrays, *(rest if rich else []))


def hopper(chip="h200", precisions=(low.SAGE8, low.SAGE8_FP8, low.FP8)):
    """What is compiled for Hopper."""
    found = []
    for precision in precisions:
        name = f"{precision.qk}, {precision.pv}"
        options = dict(n=1000, rich=True, mask=masks.window(100, 0), soft_cap=30.0)
        found += [
            case(name, precision, chip=chip),
            case(f"{name}, causal, heads of 64", precision, 64, 64, mask=masks.causal(), chip=chip),
            case(f"{name}, values of 256, options", precision, 128, 256, chip=chip, **options),
        ]
    return found


def blackwell():
    """What is compiled for Blackwell, which multiplies blocks with scales, too."""
    fine = Precision(MXFP8, E4M3), Precision(MXFP4, E4M3), Precision(NVFP4, E4M3), Precision(NVFP4)
    found = hopper("b200", (low.SAGE8, low.SAGE8_FP8, low.FP8, *fine))
    return [*found, case("wide heads in blocks", fine[2], 256, 64, chip="b200")]


def test_the_kernel_compiles():
    found = ptxas.compiled("h200", "test_lowbit_attention_compiles_gpu")
    assert len(found) == 9
    for name, entry in found.items():
        assert "error" not in entry, (name, entry)
        assert entry["own"], name
        most = SPILLED if "options" in name and "e4m3" in name else 0
        assert sum(kernel["spills"] for kernel in entry["kernels"]) <= most, (name, entry)


@pytest.mark.parametrize("name", [name for name, *_ in blackwell()])
def test_blackwell_takes_it(name):
    entry = ptxas.compiled("b200", "test_lowbit_attention_compiles_gpu")[name]
    assert "error" not in entry, entry
    assert entry["own"]
    (kernel,) = entry["kernels"]
    alone = "options" in name
    assert kernel["spills"] <= (BLACKWELL["None" not in name] if alone else 0), entry
    assert kernel["registers"] <= REGISTERS[alone], entry
