import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxinf_kernels import attention as room
from jaxinf_kernels import lowbit_attention as low
from jaxinf_kernels.attention import masks
from jaxinf_kernels.attention.api import prepare as as_problem
from jaxinf_kernels.formats import E4M3, INT8
from jaxinf_kernels.lowbit_attention import Precision, api, gpu, lowbit_attention, xla
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.operation import OPERATIONS, How, choose
from test_lowbit_attention import K_GATE, Q_GATES, check_sums, cosine, error, inputs, options, wide

INTERPRET = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
NAMES = ("sage8", "sage8_fp8", "fp8")


def kernel(q, k, v, precision, *, mask=None, bias=None, alibi=None, sinks=None, soft_cap=None):
    """The GPU's kernel, interpreted: it raises at a race."""
    with jax.enable_x64(False):
        problem, given = as_problem(
            q, k, v, mask, bias, alibi, sinks, soft_cap, q.shape[-1] ** -0.5, How("gpu", "h100")
        )
        spec = LowBit(problem, precision)
        run = jax.jit(functools.partial(gpu.attend, spec=spec, interpret=INTERPRET))
        out, lse = run(*problem.flat(given))
        return jnp.moveaxis(out[0], 0, 1), lse[0].T


@pytest.mark.parametrize("name", NAMES)
def test_the_kernel_is_its_emulation(x64, name):
    precision = low.PRECISIONS[name]
    draws = [inputs(seed, n=70, outlier=seed == 1, d=64) for seed in range(3)]
    q, k, v = (jnp.concatenate(a, axis=1) for a in zip(*draws, strict=True))
    mask = masks.causal(130)
    out, lse = kernel(q, k, v, precision, mask=mask)
    expected, whole = low.reference(q, k, v, precision=precision, mask=mask, block=128)
    assert error(out[:, 2:4], expected[:, 2:4]) <= K_GATE
    assert error(out[:, [0, 1, 4, 5]], expected[:, jnp.array([0, 1, 4, 5])]) <= K_GATE
    check_sums(lse, whole)


@pytest.mark.parametrize("name", NAMES)
def test_formats_keep_their_bounds(x64, name):
    precision = low.PRECISIONS[name]
    q, k, v = inputs(4, n=64, m=256, d=64)
    out, _ = kernel(q, k, v, precision)
    exact, _ = room.reference(*wide(q, k, v))
    most, least, _ = Q_GATES[name]
    assert error(out, exact) <= most
    assert cosine(out, exact) >= least


@pytest.mark.parametrize(
    ("name", "option"),
    [("sage8", "segments"), ("sage8", "all"), ("fp8", "bias"), ("sage8_fp8", "sinks"),
     ("fp8", "cells"), ("sage8_fp8", "window")],
)  # fmt: skip
def test_masks_and_options_are_plain_jax(name, option):
    precision = low.PRECISIONS[name]
    q, k, v = inputs(7)
    made = options()[option]
    out, lse = kernel(q, k, v, precision, **made)
    expected, whole = lowbit_attention(
        q, k, v, precision=precision, implementation="xla", return_lse=True, **made
    )
    assert error(out.astype(jnp.float32), expected.astype(jnp.float32)) <= K_GATE
    check_sums(lse, whole)


def test_wide_values_have_parts():
    q, k, _ = inputs(8, n=64, m=130, d=64)
    v = jnp.asarray(np.random.default_rng(1).normal(size=(130, 1, 160)), jnp.bfloat16)
    out, lse = kernel(q, k, v, low.FP8)
    expected, whole = lowbit_attention(
        q, k, v, precision=low.FP8, implementation="xla", return_lse=True
    )
    assert out.shape == (64, 2, 160)
    assert error(out.astype(jnp.float32), expected.astype(jnp.float32)) <= K_GATE
    check_sums(lse, whole)


@pytest.mark.parametrize("name", NAMES)
def test_equal_values_are_returned(name):
    q, k, v = inputs(9, n=64, m=100, d=64)
    out, _ = kernel(q, k, jnp.ones_like(v), low.PRECISIONS[name])
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1)


def test_refusals_name_the_mend(monkeypatch):
    (primitive,) = (p for p in OPERATIONS if p.name == "lowbit_attention")

    def chosen(precision=low.SAGE8, d=64, dtype=jnp.bfloat16, m=64, **how):
        found = []

        def noted(*arrays, spec):
            found.append((spec, arrays))
            return xla.attend(*arrays, spec=spec)

        monkeypatch.setattr(api, "_lowbit_attention", noted)
        q, kv = (jax.ShapeDtypeStruct((n, 2, d), dtype) for n in (64, m))
        jax.eval_shape(functools.partial(lowbit_attention, precision=precision, **how), q, kv, kv)
        return choose(primitive, *found[0], "cuda")

    assert chosen().kernel is None  # never run: by default not taken
    assert chosen(implementation="gpu").kernel is not None
    assert chosen(implementation="gpu", chip="h200").kernel is not None
    for match, given in [
        ("SAGE8_FP8", dict(precision=low.SAGE4)),
        ("=FP8", dict(precision=low.MX8)),
        ("SAGE8_FP8", dict(precision=low.MX4)),
        ("SAGE8_FP8", dict(precision=low.NV4)),
        ("SAGE8_FP8", dict(precision=low.SAGE8_INT8)),
        ("smooth_q=False", dict(precision=Precision(INT8, E4M3, smooth_q=True))),
        ("divide heads", dict(d=320)),
        ("astype", dict(dtype=jnp.float32)),
        ("no keys", dict(m=0)),
        ("h100 and h200", dict(chip="b200")),
    ]:
        with pytest.raises(NotImplementedError, match=match):
            chosen(**given, implementation="gpu")
        assert chosen(**given).kernel is None
