import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import data
from jaxinf.data.quantise import _place


@pytest.mark.parametrize("levels", [2, 17, 256])
def test_round_trip_is_exact_at_all_levels(key, levels):
    x = jnp.tile(jnp.arange(levels, dtype=jnp.int32), (2000, 1))
    y = jax.jit(data.dequantise, static_argnums=2)(key, x, levels)
    assert y.dtype == jnp.float32
    np.testing.assert_array_equal(data.quantise(y, levels), x)
    assert float(jnp.max(jnp.abs(y))) <= 1


@pytest.mark.parametrize("levels", [2, 17, 100, 255, 256, 1000])
def test_round_trip_is_exact_at_the_edges_of_the_draw(levels):
    x = jnp.arange(levels, dtype=jnp.int32)
    for u in (0.0, 1 - 2.0**-24):
        y = _place(x, jnp.full(levels, u, jnp.float32), levels)
        np.testing.assert_array_equal(data.quantise(y, levels), x)
        assert float(jnp.max(jnp.abs(y))) <= 1


def test_noise_is_uniform_over_the_interval(key):
    n = 100_000
    y = np.asarray(data.dequantise(key, jnp.full(n, 3, jnp.uint8), 17), np.float64)
    u = (y + 1) / 2 * 17 - 3
    assert abs(u.mean() - 1 / 2) < 4 * np.sqrt(1 / 12 / n)
    assert abs((u**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)


def test_values_outside_go_to_the_nearest_level():
    np.testing.assert_array_equal(data.quantise(jnp.array([-3.0, 1.0, 7.0]), 17), [0, 16, 16])


def test_midpoints_are_the_means_of_the_draws(key):
    x = jnp.arange(17)
    y = data.midpoints(x, 17)
    np.testing.assert_array_equal(data.quantise(y, 17), x)
    np.testing.assert_allclose(y, _place(x, jnp.full(17, 0.5), 17), atol=1e-6)
    np.testing.assert_allclose(y[jnp.array([0, 8, 16])], [1 / 17 - 1, 0, 1 - 1 / 17], atol=1e-7)
