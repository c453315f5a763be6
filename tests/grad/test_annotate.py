"""Programs whose sites are differentiated one way and another: one gradient."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from jaxinf import grad

DRAWS = 4000


def program(scale):
    """A coin, a number that depends on it, and more of them in a plate."""
    theta = numpyro.param("theta", jnp.array(0.4))
    b = numpyro.sample("b", dist.Bernoulli(logits=theta))
    x = numpyro.sample("x", dist.Normal(theta * b + 1, scale))
    with numpyro.plate("n", 2):
        numpyro.sample("y", dist.Normal(x * theta, jnp.array([0.5, 1.0])))


def cost(values):
    return jnp.square(values["x"]) + values["b"] * 1.0 + jnp.sum(jnp.square(values["y"]))


def exactly(theta, scale=0.7):
    """E[cost] in closed form."""
    p = jax.nn.sigmoid(theta)
    squares = p * (theta + 1) ** 2 + (1 - p) + scale**2
    return squares * (1 + 2 * theta**2) + p + 0.25 + 1


COINS = grad.enumeration(), grad.score_function(), grad.measure_valued()
NUMBERS = grad.reparameterised(), grad.score_function(), grad.implicit()


@pytest.mark.parametrize(("coin", "number"), list(itertools.product(COINS, NUMBERS)), ids=str)
def test_all_ways_give_one_gradient(coin, number):
    strategies = {"b": coin, "x": number, "y": grad.reparameterised()}

    def value(theta, key):
        law = grad.annotate(program, 0.7, params={"theta": theta}, strategies=strategies)
        return grad.expectation(key, law, cost, draws=2)

    keys = jax.random.split(jax.random.key(1), DRAWS)
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(value), (None, 0)))(0.4, keys)
    for found, exact in ((values, exactly(0.4)), (slopes, jax.grad(exactly)(0.4))):
        found = np.asarray(found, np.float64)
        assert abs(found.mean() - exact) < 4 * found.std() / np.sqrt(DRAWS)


def test_measure_valued_sites_go_one_after_another():
    strategies = {"b": grad.enumeration(), "x": grad.measure_valued(), "y": grad.measure_valued()}
    law = grad.annotate(program, 0.7, params={"theta": 0.4}, strategies=strategies)
    draw = law.draw(jax.random.key(0))
    # a value of the coin, with x and y or with either part of one of their numbers' derivatives
    assert draw.weight.shape == (2 * (1 + 4 + 8),)
    chex.assert_trees_all_close(jnp.sum(draw.weight), 1.0, atol=1e-6)

    def value(theta, key):
        law = grad.annotate(program, 0.7, params={"theta": theta}, strategies=strategies)
        return grad.expectation(key, law, cost)

    keys = jax.random.split(jax.random.key(1), 1000)
    slopes = np.asarray(jax.jit(jax.vmap(jax.grad(value), (None, 0)))(0.4, keys), np.float64)
    assert abs(slopes.mean() - jax.grad(exactly)(0.4)) < 4 * slopes.std() / np.sqrt(1000)


def test_densities_are_numpyros():
    law = grad.annotate(program, 0.7, params={"theta": 0.4})
    values = {"b": jnp.array(1), "x": jnp.array(0.3), "y": jnp.array([0.1, -2.0])}
    exact, _ = numpyro.infer.util.log_density(program, (0.7,), {}, {"theta": 0.4, **values})
    chex.assert_trees_all_close(law.log_prob(values), exact, rtol=1e-6)


def test_scales_masks_and_constraints():
    def scaled(data):
        s = numpyro.param("s", 2.0, constraint=dist.constraints.positive)
        z = numpyro.sample("z", dist.Normal(0, s))
        with numpyro.plate("n", 10, subsample_size=2) as index:
            numpyro.sample("x", dist.Normal(z, 1), obs=data[index])

    data = jnp.arange(10.0)
    start = grad.initial(scaled, jax.random.key(0), data)
    chex.assert_trees_all_close(start, {"s": jnp.log(2.0)}, rtol=1e-6)
    law = grad.annotate(scaled, data, params=start)
    with numpyro.handlers.seed(rng_seed=jax.random.key(0)):
        exact, _ = numpyro.infer.util.log_density(scaled, (data,), {}, {"s": 2.0, "z": 0.5})
    assert np.isfinite(exact)
    prior = dist.Normal(0, 2.0).log_prob(0.5)
    rows = law.log_prob({"z": jnp.array(0.5)}) - prior
    each = 5 * dist.Normal(0.5, 1).log_prob(data)
    pairs = np.add.outer(np.asarray(each), np.asarray(each))
    assert np.abs(pairs - float(rows)).min() < 1e-3


def test_other_numbers_compile_nothing_anew():
    def value(params, data, key):
        law = grad.annotate(program, data, params=params, strategies={"b": grad.enumeration()})
        return grad.expectation(key, law, cost)

    traced = jax.jit(chex.assert_max_traces(value, n=1))
    for number in (0.1, 0.2):
        traced({"theta": jnp.array(number)}, jnp.array(number + 0.5), jax.random.key(0))


def discrete(p):
    numpyro.sample("k", dist.Categorical(jnp.array([p, 1 - p])))


def vector():
    numpyro.sample("v", dist.MultivariateNormal(jnp.zeros(2), jnp.eye(2)))


@pytest.mark.parametrize(
    ("model", "args", "strategy", "near"),
    [
        (discrete, (0.3,), grad.reparameterised(), "enumeration"),
        (discrete, (0.3,), grad.straight_through(), "one_hot_categorical"),
        (discrete, (0.3,), grad.measure_valued(), "score_function"),
        (discrete, (0.3,), grad.implicit(), "enumeration"),
        (discrete, (0.3,), grad.accept_reject(), "reparameterised"),
        (vector, (), grad.implicit(), "reparameterised"),
        (vector, (), grad.enumeration(), "score_function"),
        (vector, (), grad.reinmax(), "score_function"),
    ],
)
def test_a_strategy_that_a_site_cannot_have(model, args, strategy, near):
    law = grad.annotate(model, *args, default=strategy)
    with pytest.raises(ValueError, match=f"at the site '[kv]': .*{near}"):
        law.draw(jax.random.key(0))


def test_bad_input():
    with pytest.raises(TypeError, match="has no strategy"):
        grad.annotate(discrete, 0.3, strategies={"k": "enumerate"})
    chosen = {"j": grad.enumeration(), "k": grad.enumeration()}
    law = grad.annotate(discrete, 0.3, strategies=chosen)
    with pytest.raises(ValueError, match="no sites of the program"):
        law.draw(jax.random.key(0))
    law = grad.annotate(discrete, 0.3, default=grad.enumeration())
    with pytest.raises(ValueError, match="have no value"):
        law.log_prob({})
    with pytest.raises(ValueError, match="not in the program"):
        law.log_prob({"k": jnp.array(0), "j": jnp.array(0)})
    with pytest.raises(ValueError, match="boosts"):
        grad.accept_reject(-1)
    with pytest.raises(ValueError, match="draws"):
        grad.expectation(jax.random.key(0), law, lambda v: v["k"] * 1.0, draws=0)
    with pytest.raises(ValueError, match="one number"):
        grad.expectation(jax.random.key(0), law, lambda v: jnp.ones(2) * v["k"])
    with pytest.raises(ValueError, match="annotated already"):
        grad.expectation(jax.random.key(0), law, cost, strategy=grad.enumeration())

    def many():
        numpyro.sample("k", dist.Bernoulli(0.5).expand([13]).to_event(1))

    with pytest.raises(ValueError, match="8,192 values"):
        grad.annotate(many, default=grad.enumeration()).draw(jax.random.key(0))
