"""Every strategy: unbiased, with the variance that it states; or unbiased for its surrogate."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from jaxinf import grad

DRAWS = 10_000
MU, SD = 1.0, 1.4
P = 1 / (1 + np.exp(-0.3))
ONE, NONE = 2 * np.cos(1.0), 1.0
"""Costs of a Bernoulli's values."""


def square(x):
    return jnp.square(x) * 1.0


def of_bernoulli(x):
    return jnp.where(x == 1, ONE, NONE)


def moments_of_score():
    """Variances of the score's estimates for a normal's square, in mean and deviation."""
    m, s = MU, SD
    # of (m + s e)^2 by powers of e
    coefficients = np.array([m**2, 2 * m * s, s**2])
    even = np.array([1, 0, 1, 0, 3, 0, 15, 0, 105, 0, 945])

    def second(factor):
        whole = np.convolve(coefficients, factor)
        return np.convolve(whole, whole) @ even[: 2 * len(whole) - 1]

    return (
        second(np.array([0, 1 / s])) - (2 * m) ** 2,
        second(np.array([-1, 0, 1]) / s) - (2 * s) ** 2,
    )


NORMAL = (lambda t: dist.Normal(t[0], t[1]), square, [MU, SD], [2 * MU, 2 * SD])
GAMMA = (lambda t: dist.Gamma(t[0], 2.0), jnp.log, [2.0], [0.6449340668])
SMALL = (lambda t: dist.Gamma(t[0], 1.0), jnp.log, [0.4], [7.2753566])
BERNOULLI = (
    lambda t: dist.Bernoulli(logits=t[0]),
    of_bernoulli,
    [0.3],
    [P * (1 - P) * (ONE - NONE)],
)
MIXTURE = (
    lambda t: dist.MixtureSameFamily(
        dist.Categorical(jnp.array([0.3, 0.7])), dist.Normal(jnp.stack([t[0], jnp.array(2.0)]), 1.0)
    ),
    square,
    [-1.0],
    [-0.6],
)  # fmt: skip
CASES = {
    # strategy, (law, f, theta, gradient), variances where there is a closed form
    "reparameterised": (
        grad.reparameterised(), NORMAL, [4 * SD**2, 4 * (MU**2 + 2 * SD**2)],
    ),
    "score function, normal": (grad.score_function(), NORMAL, moments_of_score()),
    "score function, Bernoulli": (
        grad.score_function(), BERNOULLI,
        [P * (1 - P) * (P * NONE**2 + (1 - P) * ONE**2) - (P * (1 - P) * (ONE - NONE)) ** 2],
    ),
    "enumeration": (grad.enumeration(), BERNOULLI, [0.0]),
    "measure-valued, Bernoulli": (grad.measure_valued(), BERNOULLI, [0.0]),
    "measure-valued, Poisson": (
        grad.measure_valued(), (lambda t: dist.Poisson(t[0]), square, [3.0], [7.0]), [12.0],
    ),
    "measure-valued, exponential": (
        grad.measure_valued(), (lambda t: dist.Exponential(t[0]), square, [1.5], [-4 / 1.5**3]),
        [48 / 1.5**6],
    ),
    "measure-valued, normal": (grad.measure_valued(), NORMAL, None),
    "accept-reject": (grad.accept_reject(0), GAMMA, None),
    "accept-reject, boosted": (grad.accept_reject(3), GAMMA, None),
    "accept-reject, small concentrations": (grad.accept_reject(1), SMALL, None),
    "accept-reject, beta": (
        grad.accept_reject(1),
        (lambda t: dist.Beta(t[0], t[1]), lambda x: x, [2.0, 1.5], [1.5 / 3.5**2, -2 / 3.5**2]),
        None,
    ),
    "accept-reject, Dirichlet": (
        grad.accept_reject(1),
        (lambda t: dist.Dirichlet(t), lambda x: x[0], [1.0, 0.7, 1.3], [2 / 9, -1 / 9, -1 / 9]),
        None,
    ),
    "implicit": (grad.implicit(), NORMAL, [4 * SD**2, 4 * (MU**2 + 2 * SD**2)]),
    "implicit, mixture": (grad.implicit(), MIXTURE, None),
}  # fmt: skip


def estimates(strategy, case, draws=DRAWS, each=1, seed=0):
    law, f, theta, _ = case

    def value(theta, key):
        return grad.expectation(key, law(theta), f, strategy=strategy, draws=each)

    keys = jax.random.split(jax.random.key(seed), draws)
    found = jax.jit(jax.vmap(jax.grad(value), (None, 0)))(jnp.array(theta), keys)
    return np.asarray(found, np.float64)


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_unbiased_and_its_variance_is_known(name):
    strategy, case, variances = CASES[name]
    found = estimates(strategy, case)
    spread = found.std(axis=0, ddof=1)
    error = np.maximum(spread / np.sqrt(DRAWS), 1e-6)
    assert (np.abs(found.mean(axis=0) - case[3]) < 4 * error).all()
    if variances is None:
        return
    centred = (found - found.mean(axis=0)) ** 2
    error = np.maximum(centred.std(axis=0) / np.sqrt(DRAWS), 1e-6)
    assert (np.abs(centred.mean(axis=0) - variances) < 4 * error).all()


@pytest.mark.parametrize("strategy", [grad.score_function(), grad.measure_valued()])
def test_others_means_are_a_baseline_without_bias(strategy):
    far = (NORMAL[0], lambda x: 10 + square(x), *NORMAL[2:])
    alone = estimates(strategy, far, 4000)
    found = estimates(strategy, far, 4000, each=4)
    error = found.std(axis=0) / np.sqrt(4000)
    assert (np.abs(found.mean(axis=0) - NORMAL[3]) < 4 * error).all()
    if strategy == grad.score_function():
        assert (4 * found.var(axis=0) < 0.5 * alone.var(axis=0)).all()


def test_accepted_noise_says_far_more_than_scores():
    ours, theirs = (
        estimates(s, GAMMA).var() for s in (grad.accept_reject(1), grad.score_function())
    )
    assert 5 * ours < theirs


def test_boosts_make_the_correction_small():
    def correction(theta, key, boosts):
        site = grad.accept_reject(boosts).draw(key, dist.Gamma(theta, 1.0), 0)
        return jax.lax.stop_gradient(jnp.log(site.value)) * site.score

    keys = jax.random.split(jax.random.key(0), 4000)
    found = [
        jax.vmap(jax.grad(lambda t, k, b=b: correction(t, k, b)), (None, 0))(2.0, keys).var()
        for b in (0, 1, 4, 10)
    ]
    assert (np.diff(found) < 0).all()


QUADRATIC = np.random.default_rng(1).normal(size=(4, 4))
LINEAR = np.random.default_rng(2).normal(size=4)


def costs(x):
    return x @ jnp.asarray(QUADRATIC) @ x + jnp.asarray(LINEAR) @ x


def expected(strategy, f, logits):
    """Return the expectation of an estimate: its values at each draw, by their probabilities."""

    def at(theta, value):
        return f(strategy.draw(jax.random.key(0), OneHotCategorical(theta, value), 0).value)

    slopes = jax.vmap(jax.grad(at), (None, 0))(logits, jnp.eye(4))
    return np.asarray(jax.nn.softmax(logits) @ slopes)


class OneHotCategorical(type(grad.one_hot_categorical(jnp.zeros(2)))):
    """A law whose draw is known."""

    def __init__(self, logits, value):
        self.value = value
        super().__init__(logits, validate_args=False)

    def sample(self, key, sample_shape=()):
        return self.value


def test_reinmax_is_exact_for_quadratic_costs(x64):
    logits = jnp.array([0.3, -0.5, 0.1, 0.8])
    exact = jax.grad(lambda t: jax.nn.softmax(t) @ jnp.array([costs(x) for x in jnp.eye(4)]))(
        logits
    )
    np.testing.assert_allclose(expected(grad.reinmax(), costs, logits), exact, atol=1e-13)
    straight = expected(grad.straight_through(), costs, logits)
    assert np.abs(straight - exact).max() > 0.05


def test_straight_through_is_its_surrogate_and_exact_for_linear_costs(x64):
    logits = jnp.array([0.3, -0.5, 0.1, 0.8])
    pi = jax.nn.softmax(logits)
    jacobian = jnp.diag(pi) - jnp.outer(pi, pi)
    slopes = jax.vmap(jax.grad(costs))(jnp.eye(4))
    surrogate = jnp.sum(pi[:, None] * (slopes @ jacobian), axis=0)
    found = expected(grad.straight_through(), costs, logits)
    np.testing.assert_allclose(found, surrogate, atol=1e-13)
    line = jnp.asarray(LINEAR)
    found = expected(grad.straight_through(), lambda x: line @ x, logits)
    np.testing.assert_allclose(found, jacobian @ line, atol=1e-13)


@pytest.mark.parametrize("strategy", [grad.straight_through(), grad.reinmax()])
def test_a_bernoulli_is_a_categorical_of_two(strategy):
    case = lambda t: dist.Bernoulli(logits=t[0]), lambda x: 1 + x + 0.5 * x, [0.3], None
    found = estimates(strategy, case, 4000)
    exact = 1.5 * P * (1 - P)
    error = np.maximum(found.std() / np.sqrt(4000), 1e-6)
    assert abs(found.mean() - exact) < 4 * error


def test_forward_gradients():
    x = {"a": jnp.arange(1.0, 9.0) / 4, "b": jnp.array([[0.5, -1.0]])}

    def f(x):
        return jnp.sum(jnp.sin(x["a"])) + jnp.prod(x["b"])

    def flat(tree):
        return np.concatenate([np.asarray(a, np.float64).reshape(a.shape[0], -1) for a in tree], 1)

    exact = np.concatenate([np.ravel(a) for a in jax.tree.leaves(jax.grad(f)(x))])
    keys = jax.random.split(jax.random.key(0), DRAWS)
    value, found = jax.vmap(lambda key: grad.forward_gradient(f, x, key))(keys)
    np.testing.assert_allclose(value, f(x), rtol=1e-6)
    found = flat(jax.tree.leaves(found))
    error = found.std(axis=0) / np.sqrt(DRAWS)
    assert (np.abs(found.mean(axis=0) - exact) < 4 * error).all()
    squares = np.sum(found**2, axis=1)
    n = len(exact)
    expected_square = (n + 2) * np.sum(exact**2)
    assert abs(squares.mean() - expected_square) < 4 * squares.std() / np.sqrt(DRAWS)
    _, several = jax.vmap(lambda key: grad.forward_gradient(f, x, key, directions=4))(keys[:2000])
    ratio = flat(jax.tree.leaves(several)).var(axis=0).sum() / found.var(axis=0).sum()
    assert abs(ratio - 0.25) < 0.03
    with pytest.raises(ValueError, match="directions"):
        grad.forward_gradient(f, x, keys[0], directions=0)
