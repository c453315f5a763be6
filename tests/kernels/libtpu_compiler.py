"""Functions compiled by libtpu for TPUs that are not here."""

import jax
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxinf_kernels.static import tpu

pytest.importorskip("libtpu", reason="libtpu compiles for TPUs: pip install 'jaxinf[aot]'")

CHIPS = tuple(tpu.TOPOLOGIES)


def one(chip):
    """A sharding on one core of a chip."""
    return NamedSharding(Mesh(np.array([tpu.device(chip)]), ("x",)), PartitionSpec())


def compiled(chip, function, *args):
    """Compile a function of arrays, or of their shapes, for one core of a chip."""
    place = one(chip)
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=place), args)
    return jax.jit(function, out_shardings=place).lower(*placed).compile()
