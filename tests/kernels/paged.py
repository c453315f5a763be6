"""Sequences in paged caches, and the kernel in a simulation of a TPU."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic.interpret import interpret_pallas_call
from jax.experimental.pallas import tpu as pltpu
from jaxinf_kernels import decode_attention as room
from jaxinf_kernels.decode_attention import Blocks, api, decode_attention, tpu
from jaxinf_kernels.formats import E4M3, INT4, INT8, NVFP4

FORMS = [None, INT8, INT4, E4M3, NVFP4]
EXTRAS = {
    "window": 20,
    "soft_cap": 3.0,
    "alibi": jnp.array([0.1, 0.2, 0.05, 0.0], jnp.float32),
    "sinks": jnp.array([0.5, 1.0, -1.0, 0.0], jnp.float32),
}
BLOCKS = Blocks(tokens=32, rows=4)


def interpreted(*arrays, spec):
    """The kernel in a simulation of a TPU, where memory is NaN until it is written."""
    params = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")
    return tpu.attend(*arrays, spec=spec, interpret=params)


@pytest.fixture
def kernel(monkeypatch):
    """Whatever decode_attention is asked for is done by the kernel, and without races."""
    monkeypatch.setattr(api, "_decode_attention", interpreted)
    yield
    races = interpret_pallas_call.races
    assert races is not None
    assert not races.races_found


@pytest.fixture(params=["xla", "kernel"])
def either(request):
    if request.param == "kernel":
        request.getfixturevalue("kernel")
    return request.param


def attend(**options):
    return jax.jit(partial(decode_attention, **{"blocks": BLOCKS, "return_lse": True, **options}))


class Case:
    """Sequences in a cache whose pages lie in any order, with NaN where nothing was written."""

    def __init__(self, form, seed=0, *, lengths=(61, 0, 17), size=16, groups=2, repeats=2, d=32,
                 queries=None, dtype=jnp.bfloat16, outliers=False):  # fmt: skip
        rng = np.random.default_rng(seed)
        pages = [-(-length // size) for length in lengths]
        width, count = max(pages) + 1, sum(pages) + 2
        order = rng.permutation(count)
        self.table = np.full((len(lengths), width), 10**6, np.int32)
        for row, n in zip(self.table, pages, strict=True):
            row[:n], order = order[:n], order[n:]
        self.lengths = np.array(lengths, np.int32)
        self.cache = room.empty(count, size, groups, d, form=form, dtype=dtype)
        if form is None:
            self.cache = jax.tree.map(lambda a: jnp.full_like(a, jnp.nan), self.cache)
        sequence = np.concatenate([np.full(n, i) for i, n in enumerate(lengths)])
        position = np.concatenate([np.arange(n) for n in lengths])
        k, v = rng.normal(size=(2, len(position), groups, d))
        if outliers:
            k[..., :2] *= 5
        self.k, self.v = (jnp.asarray(a, dtype) for a in (k, v))
        place = room.slots(self.cache, *map(jnp.asarray, (self.table, sequence, position)))
        self.place = place
        self.cache = room.write(self.cache, self.k, self.v, place)
        self.sequence = sequence
        shape = (len(lengths), groups * repeats, d)
        shape = shape if queries is None else (shape[0], queries, *shape[1:])
        self.q = jnp.asarray(rng.normal(size=shape), dtype)

    @property
    def arrays(self):
        return self.q, self.cache, jnp.asarray(self.table), jnp.asarray(self.lengths)

    def __call__(self, **options):
        return attend(**options)(*self.arrays)

    def reference(self, cache=None, **options):
        q = jnp.asarray(self.q, jnp.float64)
        q = q if q.ndim == 4 else q[:, None]
        out, lse = room.reference(q, cache or self.cache, *self.arrays[2:], **options)
        return out.reshape(self.q.shape), lse.reshape(self.q.shape[:-1])

    def exact(self, **options):
        """Float64 attention to the numbers that were written, unquantised."""
        size, (groups, d) = self.cache.page_size, self.k.shape[1:]
        wide = room.empty(len(self.cache.keys.elements), size, groups, d, dtype=jnp.float64)
        k, v = (a.astype(jnp.float64) for a in (self.k, self.v))
        return self.reference(room.write(wide, k, v, self.place), **options)[0]


def relative(a, b):
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)
