"""Records, noise, traces, the integrator, and the checks."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core


@core.record
class Pair:
    a: core.Leaf
    b: core.Leaf
    name: str = core.static(default="pair")


def test_records_are_pytrees_whose_static_fields_are_structure():
    """Leaves are traced, statics are not; another number compiles nothing, another static does."""

    @jax.jit
    @chex.assert_max_traces(n=2)
    def total(pair):
        return pair.a + pair.b if pair.name == "pair" else pair.a

    assert float(total(Pair(1.0, 2.0))) == 3
    assert float(total(Pair(2.0, 2.0))) == 4
    assert float(total(Pair(2.0, 2.0, "other"))) == 2
    with pytest.raises(AttributeError):
        Pair(1.0, 2.0).a = 3.0


@pytest.mark.parametrize("impl", ["threefry2x32", "rbg"])
def test_noise_depends_on_key_step_pair_and_index_alone(impl):
    """The same (key, step, t, s, index) gives the same draw; changing any one gives another.

    For the key that is each of its words, whatever the generator.
    """
    words = jax.random.key_data(jax.random.key(7, impl=impl))

    def draw(step=0, t=0.5, s=0.4, index=0, words=words):
        key = jax.random.wrap_key_data(words, impl=impl)
        noise = core.Independent(key, step, index, (3,), jnp.float32)
        return np.asarray(noise.increment(t, s))

    np.testing.assert_array_equal(draw(), draw())
    others = [draw(step=1), draw(t=0.6), draw(s=0.3), draw(index=1), draw(t=0.4, s=0.5)]
    others += [draw(words=words.at[i].add(1)) for i in range(words.size)]
    for other in others:
        assert not np.any(other == draw())


def test_no_two_steps_or_pairs_share_a_key(key):
    """On a dyadic grid, where times have few bits, every (step, t, s) has a key of its own."""
    times = jnp.linspace(1.0, 0.0, 65)

    def words(step, t, s):
        noise = core.Independent(key, step, 0, (), jnp.float32)
        return jax.random.key_data(noise.key_of(t, s))

    over_s = jax.vmap(words, (None, None, 0))
    over_all = jax.vmap(jax.vmap(over_s, (None, 0, None)), (0, None, None))
    got = np.asarray(jax.jit(over_all)(jnp.arange(64), times, times)).reshape(-1, 2)
    assert len(np.unique(got, axis=0)) == len(got)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_increments_have_the_samples_dtype(dtype, key, x64):
    """An increment is drawn in the example's dtype, with the numbers of that dtype."""
    noise = core.Independent(key, 0, 0, (3,), dtype)
    wanted = jax.random.normal(noise.key_of(0.5, 0.4), (3,), dtype)
    assert wanted.dtype == dtype
    chex.assert_trees_all_equal_shapes_and_dtypes(noise.increment(0.5, 0.4), wanted)
    np.testing.assert_array_equal(noise.increment(0.5, 0.4), wanted)


def test_increments_are_standard_normal(key):
    """Mean 0, variance 1, no correlation between samples: |z| < 4."""

    def draw(step, index):
        return core.Independent(key, step, index, (2,), jnp.float32).increment(0.5, 0.4)

    for z in (
        jax.vmap(draw, (None, 0))(0, jnp.arange(20_000)),
        jax.vmap(draw, (0, None))(jnp.arange(20_000), 0),
    ):
        _check_standard_normal(z)


def _check_standard_normal(z):
    n = len(z)
    for moment, mean, deviation in (
        (z, 0, 1),
        (z**2, 1, np.sqrt(2)),
        (z[1:] * z[:-1], 0, 1),
        (z[:, :1] * z[:, 1:], 0, 1),
    ):
        assert float(jnp.max(jnp.abs(moment.mean(0) - mean))) * np.sqrt(n) / deviation < 4


def test_brownian_increments_agree_across_grids_and_have_unit_variance(key, x64):
    """Sums over a fine grid are the coarse increments; variance 1, no correlation: |z| < 4."""
    make = core.brownian(2.0, depth=12)
    times = jnp.array([1.9, 1.2, 0.7, 0.31, 0.3, 0.0])

    def increments(index):
        noise = make.at(key, 0, index, (), jnp.float64)
        fine = jnp.stack([noise.increment(t, s) for t, s in itertools.pairwise(times)])
        return fine, noise.increment(times[0], times[-1])

    fine, whole = jax.jit(jax.vmap(increments))(jnp.arange(4000))
    np.testing.assert_allclose(fine @ jnp.sqrt(-jnp.diff(times)), whole * np.sqrt(1.9), rtol=1e-9)
    moments = fine.T @ fine / 4000
    z = (moments - jnp.eye(5)) * np.sqrt(4000) / np.sqrt(1 + np.eye(5))
    assert float(jnp.max(jnp.abs(z))) < 4
    other = make.at(jax.random.key(1), 0, 0, (), jnp.float64).increment(times[0], times[-1])
    assert float(other) != float(whole[0])
    with pytest.raises(ValueError, match=r"depth must be 1 \.\.\. 30"):
        core.brownian(1.0, depth=0)


@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (1000,)])
def test_normal_is_jax_random_normal(shape, key):
    """The same numbers to the last bit, inside a compiled scan too; other dtypes are JAX's own."""
    expected = jax.random.normal(key, shape)
    np.testing.assert_array_equal(core.normal(key, shape), expected)
    _, scanned = jax.lax.scan(lambda c, _: (c, core.normal(key, shape)), 0, length=2)
    np.testing.assert_array_equal(scanned[1], expected)
    half = core.normal(key, shape, jnp.bfloat16)
    np.testing.assert_array_equal(half, jax.random.normal(key, shape, jnp.bfloat16))


@pytest.mark.parametrize("probes", [1, 7])
def test_hutchinson_is_unbiased_with_the_stated_variance(probes, x64):
    """Mean and variance of v^T A v for a symmetric A, against the closed form, |z| < 4."""
    a = jax.random.normal(jax.random.key(2), (4, 4))
    a = a + a.T
    x = jnp.arange(4.0)
    trace = core.hutchinson(probes)

    def one(key):
        return core.value_and_trace(trace, lambda x: a @ x, x, trace.probes(key, x))[1].mean()

    draws = jax.vmap(one)(jax.random.split(jax.random.key(0), 20_000))
    variance = 2 * (jnp.sum(a**2) - jnp.sum(jnp.diag(a) ** 2)) / probes
    z = (draws.mean() - jnp.trace(a)) / jnp.sqrt(variance / len(draws))
    assert abs(float(z)) < 4
    spread = (draws - jnp.trace(a)) ** 2
    z = (spread.mean() - variance) / (spread.std() / np.sqrt(len(draws)))
    assert abs(float(z)) < 4


def test_each_probe_has_its_own_estimate(x64):
    """Hutchinson's estimates, on an image-shaped example, are v^T J v in the probes' order."""
    a = jax.random.normal(jax.random.key(2), (6, 6))
    x, trace = jnp.ones((2, 3)), core.hutchinson(4)
    probes = trace.probes(jax.random.key(0), x)

    def field(x):
        return (a @ x.ravel()).reshape(x.shape)

    v = probes.reshape(4, 6)
    wanted = jnp.sum((v @ a) * v, axis=1)
    np.testing.assert_allclose(core.value_and_trace(trace, field, x, probes)[1], wanted, rtol=1e-12)


def test_exact_trace_is_the_jacobians(x64):
    """The exact trace of a nonlinear field on an image-shaped example."""
    x = jax.random.normal(jax.random.key(0), (2, 3))

    def field(x):
        return jnp.sin(x) * jnp.sum(x**2)

    value, trace = core.value_and_trace(core.exact(), field, x, core.exact().probes(None, x))
    jacobian = jax.jacobian(field)(x).reshape(6, 6)
    np.testing.assert_allclose(trace, jnp.trace(jacobian)[None], rtol=1e-12)
    np.testing.assert_allclose(value, field(x))


def test_runge_kutta_is_of_fourth_order(x64):
    """Errors on a nonlinear equation with known solution fall sixteenfold a doubling."""
    errors = [
        abs(
            float(core.runge_kutta(lambda t, y: -(y**2) * t, 1.0, jnp.linspace(0.0, 2.0, n + 1)))
            - 1 / 3
        )
        for n in (40, 80, 160)
    ]
    assert errors[-1] > 1e-11
    np.testing.assert_allclose(np.log2(np.divide(errors[:-1], errors[1:])), 4, atol=0.15)


def test_carry_starts_from_its_value_even_beside_nan():
    """The start of a carry is its value, whatever the array that lends its type holds."""
    x = jnp.array([jnp.nan, jnp.inf])
    assert float(core.carry(x, 2.0)) == 2.0
    assert core.carry(x.astype(jnp.bfloat16), 2.0).dtype == jnp.bfloat16
    gradient = jax.grad(lambda x: core.carry(x, 2.0) * 3)(x)
    np.testing.assert_array_equal(gradient, 0)


def test_division_and_root_at_zero():
    """Finite in value and gradient at 0, ordinary elsewhere."""
    assert float(core.divide(jnp.float32(3), jnp.float32(0))) == 0
    assert float(core.divide(jnp.float32(3), jnp.float32(2))) == 1.5
    for x in (-1.0, 0.0):
        assert jax.value_and_grad(core.root)(x) == (0, 0)
    np.testing.assert_allclose(jax.value_and_grad(core.root)(4.0), (2, 0.25))
    chex.assert_tree_all_finite(jax.grad(core.divide, (0, 1))(3.0, 0.0))


def test_keys_are_checked():
    """Raw keys, no keys and arrays of keys are refused with the mend."""
    with pytest.raises(TypeError, match=r"jax.random.key\(seed\)"):
        core.check_key(jnp.zeros(2, jnp.uint32))
    with pytest.raises(TypeError, match="typed key"):
        core.check_key(0)
    with pytest.raises(ValueError, match="array of keys"):
        core.check_key(jax.random.split(jax.random.key(0), 3))


def test_batches_are_checked():
    """Integers, empty batches and conditions of another length are refused with the mend."""
    with pytest.raises(TypeError, match="dequantise"):
        core.check_batch(jnp.zeros((3, 2), jnp.uint8))
    with pytest.raises(ValueError, match=r"x\[None\]"):
        core.check_batch(jnp.zeros((0, 2)))
    with pytest.raises(ValueError, match=r"jnp.full\(3, label\)"):
        core.check_batch(jnp.zeros((3, 2)), jnp.zeros(2))
    with pytest.raises(ValueError, match="at least 1"):
        core.hutchinson(0)
