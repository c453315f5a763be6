"""Numbers of a few bits: errors, scales, rounding to the nearest and at random."""

import chex
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jaxinf_kernels import formats
from jaxinf_kernels.formats import FORMATS, quantise

X = jax.random.normal(jax.random.key(0), (16, 64))


def grid(form):
    """All magnitudes of a format, from its bits."""
    if form.whole:
        return np.arange(form.largest + 1)
    bits = np.arange(2**form.bits, dtype=np.uint8)
    values = (
        bits.astype(ml_dtypes.uint4).view(form.dtype) if form.bits == 4 else bits.view(form.dtype)
    )
    values = np.abs(values.astype(np.float64))
    return np.unique(values[np.isfinite(values)])


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_casts_are_to_the_nearest(form):
    values = grid(form)
    assert values[-1] == form.largest
    x = np.concatenate([np.linspace(0, 1.2 * form.largest, 4001), np.geomspace(1e-3, 1, 200)])
    x = x.astype(np.float32)
    nearest = np.abs(np.minimum(x, form.largest)[:, None] - values).min(axis=1)
    found = np.asarray(formats.cast(jnp.asarray(x), form).astype(jnp.float32), np.float64)
    np.testing.assert_allclose(
        np.abs(found - np.minimum(x, form.largest)), nearest, rtol=1e-6, atol=1e-7
    )
    chex.assert_trees_all_equal(
        formats.cast(-jnp.asarray(x), form).astype(jnp.float32), -jnp.asarray(found, jnp.float32)
    )


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_random_rounding_keeps_the_mean_and_takes_neighbours(form):
    x = jnp.asarray(np.linspace(-0.9, 0.9, 61) * form.largest, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 4000)
    drawn = jax.vmap(lambda key: formats.stochastic(key, x, form))(keys)
    drawn = np.asarray(drawn.astype(jnp.float32), np.float64)
    values = np.unique(np.concatenate([-grid(form), grid(form)]))
    exact = np.asarray(x, np.float64)
    below = values[np.searchsorted(values, exact, "right") - 1]
    above = values[np.minimum(np.searchsorted(values, exact), len(values) - 1)]
    assert ((drawn == below) | (drawn == above)).all()
    chance = np.where(above > below, (exact - below) / np.where(above > below, above - below, 1), 0)
    error = np.sqrt(chance * (1 - chance) / len(keys)) * (above - below)
    assert (np.abs(drawn.mean(0) - exact) <= 4.5 * error + 1e-6 * form.largest).all()
    assert (error[np.abs(exact) > 0].max()) < form.largest / 4


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_numbers_come_back_to_half_a_step(form):
    held = quantise(X, form)
    scales = np.repeat(np.asarray(held.full_scales, np.float64), held.block, axis=-1)
    unit = np.asarray(X, np.float64) / scales
    values = grid(form)
    # above the largest element, which scales of few bits leave room for, it is the largest
    wanted = np.abs(np.minimum(np.abs(unit), form.largest)[..., None] - values).min(-1)
    wanted = np.maximum(wanted, np.abs(unit) - form.largest)
    found = np.abs(np.asarray(held.dequantise(), np.float64) - np.asarray(X, np.float64)) / scales
    np.testing.assert_allclose(found, wanted, atol=1e-4 * form.largest)
    assert held.shape == X.shape
    assert held.scales.shape == (16, 64 // (form.block or 64))
    assert held.scales.dtype == form.scale


def test_scales_of_powers_of_two_are_the_standards():
    """Floor of log2 of the largest, less that of the format's largest: 8 and 2."""
    x = jnp.zeros((3, 32)).at[:, 0].set(jnp.array([1.0, 7.9, 448.0]))
    for form, unit in ((formats.MXFP8, 8), (formats.MXFP4, 2)):
        scales = quantise(x, form).scales.astype(jnp.float32)[:, 0]
        np.testing.assert_array_equal(scales, 2.0 ** (np.array([0, 2, 8]) - unit))


@pytest.mark.parametrize("form", FORMATS.values(), ids=str)
def test_zeros_and_what_is_not_finite(form):
    size = form.block or 64
    x = X.at[0, :size].set(0).at[1, size - 1].set(jnp.inf).at[2, 0].set(jnp.nan)
    held = quantise(x, form)
    back = np.asarray(held.dequantise())
    assert (back[0, :size] == 0).all()
    assert held.full_scales[0, 0] > 0
    assert np.isnan(back[1, :size]).all()
    assert np.isnan(back[2, :size]).all()
    assert np.isfinite(back[3:]).all()
    none = quantise(jnp.zeros((2, size)), form)
    np.testing.assert_array_equal(none.dequantise(), 0)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_axes_blocks_and_maps(axis):
    held = quantise(X, formats.INT8, axis=axis, block=8)
    other = quantise(jnp.moveaxis(X, axis, -1), formats.INT8, block=8)
    np.testing.assert_array_equal(jnp.moveaxis(held.elements, axis, -1), other.elements)
    batch = jnp.stack([X, 2 * X])
    if axis < 0:
        mapped = jax.vmap(lambda x: quantise(x, formats.INT8, axis=axis, block=8))(batch)
        alone = quantise(batch, formats.INT8, axis=axis, block=8)
        chex.assert_trees_all_equal(mapped, alone)
        chex.assert_trees_all_close(mapped.dequantise()[1], 2 * held.dequantise(), rtol=1e-6)


def test_blocks_must_divide():
    with pytest.raises(ValueError, match="blocks of 32 do not divide the 40 numbers along axis -1"):
        quantise(jnp.ones((2, 40)), formats.MXFP8)
