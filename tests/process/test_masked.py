"""The masking process of tokens."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process
from jaxinf.process.masked import bernoulli, masked, uniform

SCHEDULES = {
    "linear": lambda: None,
    "cosine": process.cosine,
    "linear_beta": process.linear_beta,
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


def chi_square(counts, law):
    """The statistic's z-score against a law, which must be 0 where nothing is expected."""
    counts, law = np.ravel(counts), np.ravel(law)
    assert counts[law == 0].sum() == 0
    expected = counts.sum() * law[law > 0]
    freedom = expected.size - 1
    statistic = np.sum((counts[law > 0] - expected) ** 2 / expected)
    return abs(statistic - freedom) / np.sqrt(2 * freedom)


@schedules
def test_transitions_compose_and_the_marginal_is_the_pushed_prior(name, x64):
    """keep(t) a(t, s) = keep(s), and a(t, s) a(s, u) = a(t, u), to rounding."""
    p = masked(5, SCHEDULES[name]())
    assert float(p.keep(0.0)) == 1
    for t, s, u in ((0.0, 0.3, 0.7), (0.2, 0.5, 0.9)):
        np.testing.assert_allclose(p.keep(t) * p.transition(t, s), p.keep(s), rtol=1e-14)
        np.testing.assert_allclose(
            p.transition(t, s) * p.transition(s, u), p.transition(t, u), rtol=1e-14
        )
    np.testing.assert_allclose(p.transition(0.4, 0.4), 1, rtol=1e-15)


def test_the_default_is_linear_and_nothing_is_left_at_the_end(x64):
    """keep = 1 - t; from t_max on, where no token is left, the transition is 0 and no NaN."""
    p = masked(5)
    np.testing.assert_allclose([p.keep(t) for t in (0.0, 0.25, 1.0)], [1, 0.75, 0], atol=1e-16)
    assert float(p.transition(1.0, 1.0)) == 0


@schedules
def test_the_rates_solve_the_master_equation(name, x64):
    """d keep / ds = -rate keep forwards; backwards the reveal probability's slope is the rate."""
    p = masked(5, SCHEDULES[name]())
    for t in (0.1, 0.5, 0.9):
        masking, revealing = p.rates(t)
        slope = jax.grad(lambda s, t=t: p.transition(t, s))(t)
        np.testing.assert_allclose(masking, -slope, rtol=1e-12)
        back = jax.grad(lambda s, t=t: (p.keep(s) - p.keep(t)) / (1 - p.keep(t)))(t)
        np.testing.assert_allclose(revealing, -back, rtol=1e-12)
        flow = masking * p.keep(t) - revealing * (1 - p.keep(t))  # of masks, in and out
        np.testing.assert_allclose(flow, 0, atol=1e-12)


def test_draws_have_the_law_in_one_step_or_in_two():
    """x_u from x_0, or through x_s: both tokens kept independently with probability keep(u)."""
    p, n, x0 = masked(5, process.cosine()), 40_000, jnp.array([3, 0], jnp.int32)
    keys = jax.random.split(jax.random.key(1), n)
    once = jax.vmap(lambda k: p.sample(k, x0, 0.6))(keys)

    def two(key, i):
        first, second = jax.random.split(key)
        noise = core.Independent(second, 0, i, (2,), jnp.int32)
        return p.renoise(noise, p.sample(first, x0, 0.3), jnp.float32(0.3), jnp.float32(0.6))

    twice = jax.vmap(two)(keys, jnp.arange(n))
    keep = float(p.keep(0.6))
    law = np.outer([1 - keep, keep], [1 - keep, keep])
    for x in (once, twice):
        x = np.asarray(x)
        assert np.all((x == p.mask) | (x == [3, 0]))
        counts = np.zeros((2, 2))
        np.add.at(counts, tuple((x != p.mask).astype(int).T), 1)
        assert chi_square(counts, law) < 4


def test_masks_stay_masks():
    """Renoising never brings a token back."""
    p = masked(5)
    noise = core.Independent(jax.random.key(0), 0, 0, (1000,), jnp.int32)
    x = p.renoise(noise, jnp.full(1000, p.mask), 0.2, 0.3)
    np.testing.assert_array_equal(x, p.mask)


def test_uniforms_have_all_their_digits():
    """Draws lie in [0, 1), have mean 1/2, and the small ones are no multiples of 2^-24."""
    u = np.asarray(uniform(jax.random.key(0), (1_000_000,)), np.float64)
    assert 0 <= u.min() < 1e-4
    assert u.max() < 1
    assert abs(u.mean() - 0.5) / np.sqrt(1 / 12 / u.size) < 4
    small = u[u < 2**-8] * 2**24
    assert np.mean(small == np.round(small)) < 0.05


def test_certain_events_are_certain():
    """Probability 1 always, also for the largest of uniforms; probability 0 never."""
    draws = jax.random.key(0), (1_000_000,)
    assert bool(jnp.all(bernoulli(draws[0], 1.0, draws[1])))
    assert not bool(jnp.any(bernoulli(draws[0], 0.0, draws[1])))


def test_the_prior_is_all_masks(key):
    """int32 masks of the shape that is asked for; raw keys are refused as everywhere."""
    x = masked(7).prior().sample(key, (3, 4))
    assert x.dtype == jnp.int32
    np.testing.assert_array_equal(x, np.full((3, 4), 7))
    with pytest.raises(TypeError, match="typed key"):
        masked(7).prior().sample(jnp.zeros(2, jnp.uint32), (3, 4))


def test_another_process_compiles_nothing():
    """A record built anew with other numbers runs the compiled program."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(p, key):
        return p.sample(key, jnp.arange(3), 0.3)

    for t_max in (1.0, 0.9):
        run(masked(5, process.cosine(t_max=t_max)), jax.random.key(0))


def test_composes_under_shard_map_and_grad():
    """Sampling under jit(shard_map(vmap)) on eight devices is the plain call; grad is finite."""
    p = masked(5, process.linear_beta())
    keys, x = jax.random.split(jax.random.key(0), 16), jnp.arange(64).reshape(16, 4) % 5
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    draw = jax.vmap(lambda k, x: p.sample(k, x, 0.3))
    sharded = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_array_equal(sharded(keys, x), draw(keys, x))
    chex.assert_tree_all_finite(jax.grad(lambda p: p.transition(0.2, 0.5) + p.rates(0.3)[1])(p))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: masked(0), ValueError, "vocabulary must be"),
        (lambda: masked(5, 0.3), TypeError, r"process\.cosine|Schedule"),
        (lambda: masked(5, process.edm()), ValueError, "must fall"),
        (
            lambda: masked(5, process.variance_preserving(lambda t: 0.1 + 0 * t + t)),
            ValueError,
            r"must be a probability|must fall",
        ),
        (
            lambda: masked(5, process.variance_preserving(lambda t: 1.2 - t)),
            ValueError,
            "must be a probability",
        ),
        (
            lambda: masked(5).sample(jax.random.key(0), jnp.zeros(3), 0.3),
            TypeError,
            r"tokens must be integers|Int",
        ),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()
