from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import ptxas
import pytest
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4


def case(name, form, queries=None, size=64, repeats=4, d=128, extras=(), **options):
    """Four sequences with eight groups, of which the cache has a thousand pages."""
    heads = (4, 8 * repeats, d) if queries is None else (4, queries, 8 * repeats, d)
    of = jax.ShapeDtypeStruct
    cache = jax.eval_shape(lambda: room.empty(1024, size, 8, d, form=form))
    given = {name: np.ones(8 * repeats, np.float32) for name in extras}

    def attend(*arrays):
        more = {name: jnp.asarray(a) for name, a in given.items()}
        return partial(
            room.decode_attention, return_lse=True, implementation="gpu", **more, **options
        )(*arrays)

    tables = of((4, 128), jnp.int32), of((4,), jnp.int32)
    return name, attend, (of(heads, jnp.bfloat16), cache, *tables)


def hopper(chip="h200"):
    """What is compiled for a chip."""
    extras = dict(window=300, soft_cap=30.0, extras=("alibi", "sinks"), chip=chip)
    found = [case(f"pages of 16, {f}", f, size=16, chip=chip) for f in (None, INT8, E4M3)]
    found += [case(f"pages of 64, {f}", f, chip=chip) for f in (None, INT8, E4M3, INT4, NVFP4)]
    found += [case(f"options, {f}", f, queries=5, **extras) for f in (None, INT8, INT4, NVFP4)]
    wide = case("keys of 256 numbers, 64 rows", None, queries=16, d=256, chip=chip)
    return [*found, wide, case("keys of 64 numbers", INT8, repeats=8, d=64, chip=chip)]


def blackwell():
    """The same for Blackwell."""
    return hopper("b200")


@pytest.mark.parametrize("chip", ["h200", "b200"])
def test_the_kernel_compiles_without_spills(chip):
    found = ptxas.compiled(chip, "test_decode_attention_compiles_gpu")
    assert len(found) == 14
    for name, entry in found.items():
        assert "error" not in entry, (name, entry)
        assert entry["own"], name
        assert sum(kernel["spills"] for kernel in entry["kernels"]) == 0, (name, entry)
