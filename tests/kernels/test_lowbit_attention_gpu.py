import dataclasses
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
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.formats import E4M3, INT8, MXFP4, MXFP8, NVFP4
from jaxinf_kernels.lowbit_attention import (
    Precision,
    api,
    gpu_blackwell,
    lowbit_attention,
    on_gpu,
    xla,
)
from jaxinf_kernels.lowbit_attention.gpu_blocks import inputs_of
from jaxinf_kernels.lowbit_attention.prepare import prepare
from jaxinf_kernels.lowbit_attention.problem import LowBit
from jaxinf_kernels.operation import OPERATIONS, How, choose
from test_lowbit_attention import K_GATE, Q_GATES, check_sums, cosine, error, inputs, options, wide

INTERPRET = plgpu.InterpretGPUParams(detect_races=True, uninitialized_memory="nan")
NAMES = ("sage8", "sage8_fp8", "fp8")
BLOCKS = ("mxfp8", "mxfp4", "nvfp4")
"""Of which Blackwell has the products of queries and keys."""
CASES = [("h100", name) for name in NAMES] + [("b200", name) for name in NAMES + BLOCKS]
every_case = pytest.mark.parametrize(("chip", "name"), CASES)


def taken(name):
    """A precision that the kernels take: weights in blocks become E4M3."""
    precision = low.PRECISIONS[name]
    return dataclasses.replace(precision, pv=E4M3) if name in BLOCKS else precision


def kernel(
    q, k, v, precision, chip, *, mask=None, bias=None, alibi=None, sinks=None, soft_cap=None
):
    """The GPU's kernel, interpreted: it raises at a race."""
    with jax.enable_x64(False):
        problem, given = as_problem(
            q, k, v, mask, bias, alibi, sinks, soft_cap, q.shape[-1] ** -0.5, How("gpu", chip)
        )
        spec, arrays = LowBit(problem, precision), problem.flat(given)
        assert on_gpu.refusal(spec, arrays) is None
        run = jax.jit(functools.partial(on_gpu.attend, spec=spec, interpret=INTERPRET))
        out, lse = jax.block_until_ready(run(*arrays))
        return jnp.moveaxis(out[0], 0, 1), lse[0].T


@every_case
def test_the_kernel_is_its_emulation(x64, chip, name):
    precision = taken(name)
    draws = [inputs(seed, n=70, outlier=seed == 1, d=64) for seed in range(3)]
    q, k, v = (jnp.concatenate(a, axis=1) for a in zip(*draws, strict=True))
    mask = masks.causal(130)
    out, lse = kernel(q, k, v, precision, chip, mask=mask)
    expected, whole = low.reference(q, k, v, precision=precision, mask=mask, block=128)
    assert error(out[:, 2:4], expected[:, 2:4]) <= K_GATE
    assert error(out[:, [0, 1, 4, 5]], expected[:, jnp.array([0, 1, 4, 5])]) <= K_GATE
    check_sums(lse, whole)


@every_case
def test_formats_keep_their_bounds(x64, chip, name):
    q, k, v = inputs(4, n=64, m=256, d=64)
    out, _ = kernel(q, k, v, taken(name), chip)
    exact, _ = room.reference(*wide(q, k, v))
    most, least, _ = Q_GATES[name]
    assert error(out, exact) <= most
    assert cosine(out, exact) >= least


def compare(q, k, v, precision, chip, **options):
    """Hold the kernel to plain JAX."""
    out, lse = kernel(q, k, v, precision, chip, **options)
    expected, whole = lowbit_attention(
        q, k, v, precision=precision, implementation="xla", return_lse=True, **options
    )
    assert out.shape == expected.shape
    assert error(out.astype(jnp.float32), expected.astype(jnp.float32)) <= K_GATE
    check_sums(lse, whole)


@pytest.mark.parametrize("chip", ["h100", "b200"])
@pytest.mark.parametrize(
    ("name", "option"),
    [("sage8", "segments"), ("sage8", "all"), ("fp8", "bias"), ("sage8_fp8", "sinks"),
     ("fp8", "cells"), ("sage8_fp8", "window")],
)  # fmt: skip
def test_masks_and_options_are_plain_jax(chip, name, option):
    compare(*inputs(7), low.PRECISIONS[name], chip, **options()[option])


@pytest.mark.parametrize(
    ("precision", "option"), [(Precision(NVFP4), "all"), (Precision(MXFP4, E4M3), "sinks")]
)
def test_options_of_products_in_blocks(precision, option):
    compare(*inputs(7), precision, "b200", **options()[option])


@pytest.mark.parametrize(
    ("chip", "precision"),
    [("h100", low.FP8), ("b200", low.FP8), ("b200", low.SAGE8), ("b200", Precision(NVFP4, E4M3))],
)
def test_places_of_keys_are_taken_again(chip, precision):
    compare(*inputs(10, n=150, m=600, heads=2, groups=2, d=64), precision, chip)


@pytest.mark.parametrize("chip", ["h100", "b200"])
def test_wide_values_have_parts(chip):
    q, k, _ = inputs(8, n=64, m=130, d=64)
    v = jnp.asarray(np.random.default_rng(1).normal(size=(130, 1, 160)), jnp.bfloat16)
    compare(q, k, v, low.FP8, chip)


@every_case
def test_equal_values_are_returned(chip, name):
    q, k, v = inputs(9, n=64, m=100, d=64)
    out, _ = kernel(q, k, jnp.ones_like(v), taken(name), chip)
    np.testing.assert_array_equal(np.asarray(out, np.float32), 1)


@pytest.mark.parametrize("form", [MXFP8, MXFP4, NVFP4])
def test_scales_are_where_tensor_cores_read_them(form):
    """Elements times the scales that are read for them: interpret mode has no such products."""
    q, k, v = inputs(11, n=200, m=150, d=72)
    problem, given = as_problem(q, k, v, None, None, None, None, None, 0.1, How("gpu", "b200"))
    spec, sizes = LowBit(problem, Precision(form)), Sizes(200, 150, 256, 64)
    ready = prepare(spec.precision, *given[:3])
    arrays, names = inputs_of(spec, given, ready, sizes)
    before = dict(zip(names, arrays, strict=True))
    found = gpu_blackwell.with_scales(spec, given, sizes, before, False)
    assert "k scale" not in found
    for name, rows in (("q", 128), ("k", 64)):
        elements, lines = found[name].astype(jnp.float32), found[f"{name} lines"]
        (_, heads, n, d), plain = elements.shape, before[name].astype(jnp.float32)
        assert (d, n % rows) == (128, 0)
        head, row, column = jnp.ogrid[:heads, :n, :d]
        place, block = row % rows, column // form.block
        scales = lines[0, head, row // rows, block // 4, place % 32, place // 32 * 4 + block % 4]
        np.testing.assert_array_equal(elements[0] * scales.astype(jnp.float32), plain[0])
    outer = ready.q.scale[0] * ready.k.scale[0, :, :1]
    if form == NVFP4:
        np.testing.assert_allclose(found["q scale"][0, :, :200], outer, rtol=1e-6)
    else:
        assert "q scale" not in found
        np.testing.assert_array_equal(outer, 1)


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
    for chip in ("h200", "b200"):
        assert chosen(implementation="gpu", chip=chip).kernel is not None
    for form in (MXFP8, MXFP4, NVFP4):
        for pv in (None, E4M3):
            given = dict(precision=Precision(form, pv), chip="b200", implementation="gpu")
            assert chosen(**given).kernel is not None
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
        ("'h200' or 'b200'", dict(chip="v5e")),
        ("SAGE8_FP8", dict(precision=low.SAGE4, chip="b200")),
        ("SAGE8_FP8", dict(precision=low.SAGE8_INT8, chip="b200")),
        ("MXFP8, E4M3", dict(precision=low.MX8, chip="b200")),
        ("MXFP4, E4M3", dict(precision=low.MX4, chip="b200")),
        ("NVFP4, E4M3", dict(precision=low.NV4, chip="b200")),
        ("astype", dict(dtype=jnp.float32, chip="b200")),
        ("divide heads", dict(d=320, chip="b200")),
    ]:
        with pytest.raises(NotImplementedError, match=match):
            chosen(**given, implementation="gpu")
        assert chosen(**given).kernel is None
