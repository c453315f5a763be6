"""A population's arithmetic by hand, death, NaN, meshes and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxinf import smc
from jaxinf.run.mesh import make_mesh


def test_evidence_between_resamplings_is_the_mean_of_products(x64):
    """Weights that are not equal: sum of W_i w_i, and not the mean of w_i."""
    people = smc.population(jnp.arange(3.0))
    first, second = jnp.log(jnp.array([0.1, 2.0, 0.5])), jnp.log(jnp.array([4.0, 0.3, 1.0]))
    people = people.weigh(first).weigh(second)
    both = np.exp(np.asarray(first + second))
    np.testing.assert_allclose(np.exp(people.log_evidence), both.mean(), rtol=1e-12)
    np.testing.assert_allclose(np.exp(people.normalise()), both / both.sum(), rtol=1e-12)
    np.testing.assert_allclose(people.ess(), both.sum() ** 2 / (both**2).sum(), rtol=1e-12)
    np.testing.assert_allclose(
        people.mean(lambda x: x**2), both @ np.arange(3) ** 2 / both.sum(), rtol=1e-12
    )


def test_given_weights_are_a_start_and_no_evidence():
    people = smc.population(jnp.arange(3.0), jnp.log(jnp.array([1.0, 2.0, 5.0])) + 100)
    assert people.log_evidence == 0
    np.testing.assert_allclose(people.mean(), 1.5, rtol=1e-6)


def test_nan_counts_as_dead_and_is_said():
    people = smc.population(jnp.arange(4.0))
    people = people.weigh(jnp.array([jnp.nan, 0.0, jnp.inf, jnp.log(3.0)]))
    assert people.alive
    assert people.invalid == 2
    np.testing.assert_allclose(jnp.exp(people.normalise()), [0, 0.25, 0, 0.75], rtol=1e-6)
    np.testing.assert_allclose(people.log_evidence, 0, atol=1e-6)
    assert people.mean(lambda x: jnp.where(x == 0, jnp.nan, x)) == 0.25 + 0.75 * 3


def test_death_of_all_is_said_and_lasts():
    people = smc.population(jnp.arange(4.0)).weigh(jnp.full(4, -jnp.inf))
    for step in (people, people.resample(jax.random.key(0)), people.weigh(jnp.zeros(4))):
        assert not step.alive
        assert step.log_evidence == -jnp.inf
        assert step.ess() == 0
        assert jnp.isnan(step.mean())
        np.testing.assert_array_equal(step.ancestors, np.arange(4))
        np.testing.assert_array_equal(step.particles, np.arange(4.0))


def test_resampling_where_it_is_due():
    people = smc.population(jnp.arange(4.0)).weigh(jnp.log(jnp.array([1.0, 1.0, 1.0, 0.2])))
    share = float(people.ess()) / 4
    after = people.resample(jax.random.key(0), threshold=share - 0.01)
    np.testing.assert_array_equal(after.log_weights, people.log_weights)
    np.testing.assert_array_equal(after.ancestors, np.arange(4))
    after = people.resample(jax.random.key(0), smc.multinomial, threshold=share + 0.01)
    np.testing.assert_array_equal(after.particles, np.asarray(after.ancestors, float))
    np.testing.assert_allclose(after.log_weights, -np.log(4))
    same = smc.population(jnp.arange(4.0)).resample(jax.random.key(3), smc.multinomial, 1.0)
    assert (same.ancestors != jnp.arange(4)).any(), "1 resamples always"


def test_genealogy_error_of_one_weighing_is_that_of_importance_sampling(x64):
    """N / (N - 1) (sum W^2 - 1 / N), by hand; resampling by itself changes nothing of it."""
    w = np.array([0.1, 2.0, 0.5, 1.4])
    people = smc.population(jnp.arange(4.0)).weigh(jnp.log(jnp.asarray(w)))
    share = w / w.sum()
    wanted = 4 / 3 * (np.sum(share**2) - 1 / 4)
    np.testing.assert_allclose(people.log_evidence_error() ** 2, wanted, rtol=1e-10)
    after = people.resample(jax.random.key(1), smc.systematic)
    np.testing.assert_allclose(after.log_evidence_error() ** 2, wanted, rtol=1e-10)


def test_one_family_tells_nothing():
    people = smc.population(jnp.arange(4.0)).weigh(jnp.array([-jnp.inf, 0.0, -jnp.inf, -jnp.inf]))
    people = people.resample(jax.random.key(0))
    assert people.log_evidence_error() == 1
    people = people.resample(jax.random.key(1)).weigh(jnp.arange(4.0))
    assert people.log_evidence_error() == 1


def test_gradient_of_the_evidence(x64):
    x = jnp.array([0.3, -1.0, 2.0])

    def evidence(theta):
        people = smc.population(x).weigh(theta * x).weigh(jnp.sin(theta) * x**2)
        return people.weigh(jnp.array([0.0, -jnp.inf, 0.0])).log_evidence

    def exact(theta):
        w = jnp.exp(theta * x + jnp.sin(theta) * x**2)
        return jnp.log((w[0] + w[2]) / 3)

    np.testing.assert_allclose(jax.grad(evidence)(0.7), jax.grad(exact)(0.7), rtol=1e-12)


def lives(key, x):
    people = smc.population(x).weigh(-jnp.square(x - 0.3))
    people = people.resample(key, smc.systematic)
    return people.weigh(x).log_evidence, people.ancestors


@pytest.mark.parametrize("scheme", [smc.systematic, smc.multinomial, smc.residual])
def test_ancestors_do_not_depend_on_the_mesh(scheme):
    x = jax.random.normal(jax.random.key(1), (4096,))

    @jax.jit
    def ancestors(key, x):
        return smc.population(x).weigh(-3 * jnp.square(x)).resample(key, scheme).ancestors

    alone = ancestors(jax.random.key(0), x)
    with jax.set_mesh(make_mesh("data=8")):
        spread = ancestors(jax.random.key(0), jax.device_put(x, P("data")))
    np.testing.assert_array_equal(alone, spread)


def test_it_composes_under_shard_map_and_vmap():
    mesh = make_mesh("data=8")
    keys = jax.random.split(jax.random.key(0), 16)
    x = jax.random.normal(jax.random.key(1), (16, 32))
    inner = jax.shard_map(jax.vmap(lives), mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    found = jax.jit(inner)(keys, x)
    for i in (0, 7, 15):
        one = lives(keys[i], x[i])
        np.testing.assert_allclose(found[0][i], one[0], rtol=1e-5)
        np.testing.assert_array_equal(found[1][i], one[1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: smc.population(()), "one leading axis"),
        (lambda: smc.population((jnp.zeros(3), jnp.zeros(4))), "one leading axis"),
        (lambda: smc.population(jnp.zeros(1)), "two particles"),
        (lambda: smc.population(jnp.zeros(3), jnp.zeros(2)), r"shape \(3,\)"),
        (lambda: smc.population(jnp.zeros(3)).weigh(jnp.zeros(2)), r"shape \(3,\)"),
        (lambda: smc.population(jnp.zeros(3)).resample(jax.random.key(0), threshold=1.5), "lie in"),
    ],
)
def test_what_is_wrong_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
