"""Attention in float64, and how far from it a kernel is."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxinf_kernels.attention import xla


def exactly(problem, arrays, active, cotangents):
    """Outputs and gradients in float64."""

    def wide(a):
        floats = jnp.issubdtype(a.dtype, jnp.floating)
        return jnp.asarray(np.asarray(a, np.float64)) if floats else a

    with jax.enable_x64(True):
        arrays = [wide(a) for a in arrays]

        def both(*moved):
            rest = iter(moved)
            every = [next(rest) if on else a for a, on in zip(arrays, active, strict=True)]
            out, lse = xla.attend(*every, spec=problem)
            return out, jnp.where(jnp.isfinite(lse), lse, 0)

        moving = [a for a, on in zip(arrays, active, strict=True) if on]
        (out, lse), back = jax.vjp(both, *moving)
        found = [np.asarray(a) for a in back(tuple(wide(a) for a in cotangents))]
        return np.asarray(out), np.asarray(lse), found


def apart(a, b):
    a = np.asarray(a, np.float64)
    assert np.isfinite(a).all()
    return np.linalg.norm(a - b) / np.linalg.norm(b)
