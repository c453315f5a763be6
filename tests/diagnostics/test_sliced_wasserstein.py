import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import wasserstein_distance

from jaxinf import diagnostics
from jaxinf.diagnostics.sliced_wasserstein import _coupling


def sample(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def test_equal_sizes_in_one_dimension_couple_in_order(x64, key):
    x, y = sample(0, 40, 1), sample(1, 40, 1) ** 3
    expected = np.sqrt(np.mean((np.sort(x[:, 0]) - np.sort(y[:, 0])) ** 2))
    distance = diagnostics.sliced_wasserstein(key, x, y, projections=3)
    np.testing.assert_allclose(distance, expected, rtol=1e-13)


@pytest.mark.parametrize(("n", "m"), [(5, 7), (8, 6), (1, 9), (12, 12), (3, 30)])
def test_coupling_agrees_with_scipy_at_order_one(n, m):
    x, y = np.sort(sample(0, n)), np.sort(sample(1, m))
    i, j, mass = _coupling(n, m)
    np.testing.assert_allclose(
        mass @ np.abs(x[i] - y[j]), wasserstein_distance(x, y), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(("n", "m"), [(4, 6), (5, 3), (9, 9), (1, 4)])
def test_unequal_sizes_equal_replicas_to_a_common_multiple(x64, key, n, m):
    x, y = sample(0, n, 2, 3), sample(1, m, 2, 3)
    common = np.lcm(n, m)
    replicas = [jnp.repeat(a, common // len(a), axis=0) for a in (x, y)]
    np.testing.assert_allclose(
        diagnostics.sliced_wasserstein(key, x, y, projections=16),
        diagnostics.sliced_wasserstein(key, *replicas, projections=16),
        rtol=1e-13,
    )


def test_shift_has_its_closed_form(x64, key):
    # A shift by s moves each projection by <theta, s>, whose mean square is |s|^2 / d.
    d, projections = 4, 20_000
    x, shift = sample(0, 6, d), jnp.array([[1.0, -2.0, 0.5, 3.0]])
    squared = float(diagnostics.sliced_wasserstein(key, x, x + shift, projections)) ** 2
    norm = float(jnp.sum(shift**2))
    # <theta, s>^2 / |s|^2 is Beta(1/2, (d - 1)/2).
    variance = 2 * (d - 1) / (d**2 * (d + 2)) * norm**2 / projections
    assert abs(squared - norm / d) < 4 * np.sqrt(variance)


def test_symmetric_and_zero_on_the_diagonal(x64, key):
    x, y = sample(0, 5, 3), sample(1, 8, 3)
    np.testing.assert_allclose(
        diagnostics.sliced_wasserstein(key, x, y),
        diagnostics.sliced_wasserstein(key, y, x),
        rtol=1e-13,
    )
    assert diagnostics.sliced_wasserstein(key, x, x[::-1]) == 0


def test_jit_and_vmap(key):
    x, y = sample(0, 3, 5, 2), sample(1, 3, 4, 2)
    keys = jax.random.split(key, 3)
    mapped = jax.jit(jax.vmap(diagnostics.sliced_wasserstein))(keys, x, y)
    each = [diagnostics.sliced_wasserstein(k, a, b) for k, a, b in zip(keys, x, y, strict=True)]
    np.testing.assert_allclose(mapped, each, rtol=1e-5)


def test_bad_arguments_name_the_mend(key):
    with pytest.raises(ValueError, match="leading axis counts"):
        diagnostics.sliced_wasserstein(key, jnp.ones((3, 2)), jnp.ones((3, 4)))
    with pytest.raises(ValueError, match="leading axis counts"):
        diagnostics.sliced_wasserstein(key, jnp.ones((0, 2)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="projections"):
        diagnostics.sliced_wasserstein(key, jnp.ones((3, 2)), jnp.ones((3, 2)), 0)
