"""READ against quadrature, enumeration of its levels, and closed forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxinf import mc
from jaxinf.mc.nested_expectation import _levels, _read
from jaxinf.run.mesh import make_mesh


def walk(scale, key, path):
    return (path[-1] if path else 0.0) + scale * jax.random.normal(key)


CHAIN = (
    (walk, walk, walk),
    (lambda _, path, z: jnp.cos(z), lambda _, path, z: jnp.sin(z), lambda _, path: path[-1]),
)
SQUARE = (
    (walk, walk),
    (lambda _, path, z: z**2, lambda _, path: path[-1]),
)


def fast(key, problem, **options):
    """READ, compiled with the optimisation that tests do without."""
    levels = {"xla_backend_optimization_level": 2}
    run = jax.jit(lambda key, problem: mc.read(key, problem, **options), compiler_options=levels)
    return run(key, problem)


def quadrature():
    """E cos(E[sin(y1) | y0]) for y0, y1 - y0 standard normal: E[sin y1 | y0] = e^(-1/2) sin y0."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(80)
    return weights @ np.cos(np.exp(-0.5) * np.sin(nodes)) / weights.sum()


def naive(n, replicates=20_000):
    rng = np.random.default_rng(0)
    total = []
    for _ in range(20):
        y0 = rng.normal(size=replicates // 20)
        y1 = y0[:, None] + rng.normal(size=(len(y0), n))
        y2 = y1[..., None] + rng.normal(size=(*y1.shape, n))
        total.append(np.cos(np.sin(y2.mean(-1)).mean(-1)))
    total = np.concatenate(total)
    return total.mean(), total.std() / np.sqrt(len(total))


def test_a_chain_of_depth_two():
    """Within four standard errors of quadrature, where nested means are further off."""
    wanted = quadrature()
    np.testing.assert_allclose(wanted, 0.92219, atol=5e-6)
    found = fast(jax.random.key(0), mc.nesting(*CHAIN, 1.0), replicates=60_000)
    assert abs(found.mean - wanted) < 4 * found.standard_error
    assert found.standard_error < 0.01
    assert found.info.finite.all()
    for n, said in zip((1, 2, 4, 8), (0.765, 0.860, 0.898, 0.911), strict=True):
        mean, error = naive(n)
        assert abs(mean - said) < 4 * error + 5e-4
        assert wanted - mean > 6 * error


def test_the_mean_is_that_of_the_last_level_exactly():
    """E[mean of 2^L draws]^2 is mu^2 + s^2 / 2^L: what is claimed, for every cap on levels."""
    for cap in (0, 1, 3):
        found = fast(
            jax.random.key(cap), mc.nesting(*SQUARE, 1.0), replicates=60_000, max_level=cap
        )
        assert abs(found.mean - (1 + 0.5**cap)) < 4 * found.standard_error
        assert found.standard_error < 0.03
        assert found.info.cost.max() <= 2**cap


def test_levels_have_the_probabilities_that_are_divided_by():
    for rate in (0.55, 0.6, 0.7):
        thresholds, chances = _levels(jnp.float32(rate), 16)
        edges = np.concatenate([[2**32], np.asarray(thresholds, np.int64), [0]])
        np.testing.assert_allclose(chances, -np.diff(edges) / 2**32, rtol=1e-7)
        geometric = rate * (1 - rate) ** np.arange(16)
        np.testing.assert_allclose(chances[:16], geometric, rtol=1e-4, atol=2.0**-31)
        np.testing.assert_allclose(np.sum(np.asarray(chances, np.float64)), 1, rtol=1e-7)


def test_costs_are_products_of_powers_of_two_with_the_stated_mean():
    """One inner expectation: cost is 2^N with N's law; its mean under a cap is a finite sum."""
    found = fast(jax.random.key(7), mc.nesting(*SQUARE, 1.0), replicates=60_000, max_level=6)
    cost = np.asarray(found.info.cost)
    chances = np.asarray(_levels(jnp.float32(0.6), 6)[1], np.float64)
    for n, chance in enumerate(chances):
        share = np.mean(cost == 2**n)
        assert abs(share - chance) < 4 * np.sqrt(chance * (1 - chance) / len(cost))
    assert set(np.log2(cost)) <= set(range(7))


def test_a_linear_outer_function_has_no_differences():
    """Only level 0 counts: a replicate is its one draw over p_0, or 0 but for rounding."""
    linear = mc.nesting((walk, walk), (lambda _, path, z: z, lambda _, path: path[-1]), 1.0)
    found = fast(jax.random.key(1), linear, replicates=2000)
    values, cost = np.asarray(found.values), np.asarray(found.info.cost)
    # sums of 2^N numbers of size 2 over p_N: rounding grows like cost^1.32 times 2^N
    assert np.all(abs(values[cost > 1]) < 1e-6 * cost[cost > 1] ** 2)
    assert np.all(values[cost == 1] != 0)
    assert abs(found.mean) < 4 * found.standard_error


def test_replicates_do_not_depend_on_lanes():
    problem = mc.nesting(*CHAIN, 1.0)
    one = mc.read(jax.random.key(2), problem, replicates=37, lanes=1)
    many = mc.read(jax.random.key(2), problem, replicates=37, lanes=10)
    fewer = mc.read(jax.random.key(2), problem, replicates=20, lanes=64)
    np.testing.assert_allclose(one.values, many.values, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(one.info.cost, many.info.cost)
    np.testing.assert_allclose(one.values[:20], fewer.values, rtol=1e-5, atol=1e-6)


def test_depth_zero_is_plain_monte_carlo():
    plain = mc.nesting((walk,), (lambda _, path: path[0] ** 2,), 2.0)
    found = mc.read(jax.random.key(3), plain, replicates=4000, lanes=400)
    assert abs(found.mean - 4) < 4 * found.standard_error
    np.testing.assert_array_equal(found.info.cost, 1)
    np.testing.assert_allclose(found.standard_error, 4 * np.sqrt(2 / 4000), rtol=0.2)


def test_what_is_not_finite_shows():
    rooted = mc.nesting((walk, walk), (lambda _, p, z: jnp.sqrt(z), lambda _, p: p[-1]), 1.0)
    found = mc.read(jax.random.key(4), rooted, replicates=50)
    assert not found.info.finite.all()
    assert jnp.isnan(found.mean)


def test_it_compiles_once_and_composes():
    before = _read._cache_size()
    for seed in range(3):
        problem = mc.nesting(*SQUARE, 1.0 + seed)
        mc.read(jax.random.key(seed), problem, replicates=8, rate=0.6 + 0.02 * seed, max_level=4)
    assert _read._cache_size() == before + 1
    chex.clear_trace_counter()

    def value(key):
        return mc.read(key, mc.nesting(*SQUARE, 1.0), replicates=4, max_level=4).values

    counted = jax.jit(chex.assert_max_traces(value, 1))
    keys = jax.random.split(jax.random.key(5), 8)
    one = jnp.stack([counted(key) for key in keys])
    inner = jax.shard_map(
        jax.vmap(value), mesh=make_mesh("data=8"), in_specs=P("data"), out_specs=P("data")
    )
    np.testing.assert_allclose(jax.jit(inner)(keys), one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"replicates": 0}, "replicates"),
        ({"lanes": 0}, "lanes"),
        ({"max_level": 25}, "max_level"),
        ({"rate": 0.5}, "rates"),
        ({"rate": [0.6, 0.6, 0.6]}, "one for each"),
        ({"rate": 0.9, "max_level": 12}, "too small"),
    ],
)
def test_bad_input_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        mc.read(jax.random.key(0), mc.nesting(*CHAIN, 1.0), **options)


def test_a_nesting_needs_a_sampler_for_each_function():
    with pytest.raises(ValueError, match="as many samplers"):
        mc.nesting((walk,), (walk, walk))
