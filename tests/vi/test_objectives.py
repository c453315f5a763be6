"""Objectives against bounds, gradients and divergences in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest

from jaxinf import core, grad, target, vi

KEY = jax.random.key(0)


def model(x):
    z = numpyro.sample("z", dist.Normal(0, 1))
    numpyro.sample("x", dist.Normal(z, 1), obs=x)


def prior(x):
    numpyro.sample("z", dist.Normal(0, 1))


def posterior(x):
    numpyro.sample("z", dist.Normal(x / 2, jnp.sqrt(0.5)))


def free(x):
    m = numpyro.param("m", 0.0)
    s = numpyro.param("s", 1.5, constraint=dist.constraints.positive)
    numpyro.sample("z", dist.Normal(m, s))


def held(guide, **params):
    return vi.pair(grad.annotate(model, 1.0), grad.annotate(guide, 1.0, params=params))


def mean_of(function, count, seed=1):
    found = jax.jit(jax.vmap(function))(jax.random.split(jax.random.key(seed), count))
    found = np.asarray(found, np.float64)
    return found.mean(axis=0), found.std(axis=0) / np.sqrt(count), found


BOUNDS = {1: -1.918939, 2: -1.652, 5: -1.557, 10: -1.535, 50: -1.519}
"""Of the model at 1 with the prior for q, where the log-evidence is -1.5155."""


@pytest.mark.parametrize("draws", BOUNDS)
def test_importance_weighted_bounds(draws):
    measures = held(prior)
    mean, error, _ = mean_of(lambda key: vi.iwae(draws)(key, measures)[1].bound, 10_000)
    assert abs(mean - BOUNDS[draws]) < 4 * error + 5e-4


def test_one_draw_is_the_evidence_lower_bound():
    measures = held(prior)
    ours = jax.vmap(lambda key: vi.iwae(1)(key, measures)[0])(jax.random.split(KEY, 50))
    theirs = jax.vmap(lambda key: vi.elbo()(key, measures)[0])(jax.random.split(KEY, 50))
    chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.parametrize(
    "objective",
    [vi.elbo(3), vi.iwae(4), vi.renyi(0.5, 4), vi.renyi(2.0, 4), vi.log_derivative(4)],
    ids=str,
)
def test_at_the_posterior_all_bounds_are_the_evidence(objective):
    exact = dist.Normal(0, jnp.sqrt(2.0)).log_prob(1.0)
    _, info = objective(KEY, held(posterior))
    chex.assert_trees_all_close(info.bound, exact, atol=1e-5)


def test_renyis_bounds_lie_in_order():
    measures = held(prior)
    found = [
        mean_of(lambda key, a=order: vi.renyi(a, 20)(key, measures)[1].bound, 2000)[0]
        for order in (2.0, 1.0, 0.5, 0.0, -1.0)
    ]
    assert (np.diff(found) > 0).all()
    same = mean_of(lambda key: vi.renyi(0.0, 7)(key, measures)[1].bound, 50)[2]
    chex.assert_trees_all_close(
        same, mean_of(lambda key: vi.iwae(7)(key, measures)[1].bound, 50)[2], atol=2e-6
    )


def slopes(objective, count=4000, m=0.2, s=0.1, seed=1):
    """Gradients in the guide's mean and in the logarithm of its deviation."""

    def value(params, key):
        return objective(key, held(free, m=params[0], s=params[1]))[0]

    return mean_of(lambda key: jax.grad(value)(jnp.array([m, s]), key), count, seed)


def exactly(m=0.2, s=0.1):
    """The divergence's gradient: q = N(m, e^2s) against N(1/2, 1/2)."""
    return np.array([2 * (m - 0.5), 2 * np.exp(2 * s) - 1])


@pytest.mark.parametrize(
    "objective",
    [
        vi.elbo(), vi.elbo(4, sticking=True), vi.log_variance(4), vi.log_derivative(4),
        vi.renyi(1.0, 4),
    ],
    ids=str,
)  # fmt: skip
def test_gradients_of_the_reverse_divergence(objective):
    mean, error, _ = slopes(objective)
    assert (np.abs(mean - exactly()) < 4 * error).all()


def test_trajectory_balance_at_the_best_constant_is_the_log_variance():
    measures = held(free, m=jnp.array(0.2), s=jnp.array(0.1))
    drawn = vi.log_variance(64)(KEY, measures)
    mean = drawn[1].bound
    loss, _ = vi.trajectory_balance(64)(KEY, vi.balanced(measures, float(mean)))
    chex.assert_trees_all_close(loss, drawn[0] * 63 / 64, rtol=1e-4)
    with pytest.raises(TypeError, match=r"vi\.balanced"):
        vi.trajectory_balance()(KEY, measures)


def test_the_forward_divergence_is_least_at_the_posterior():
    s = 0.5 * np.log(0.5)
    mean, error, _ = slopes(vi.forward_kl(50), 2000, 0.5, s)
    assert (np.abs(mean) < 4 * error + 1e-6).all()
    away, error, _ = slopes(vi.forward_kl(50), 500, 0.0, s)
    assert away[0] < -4 * error[0]


def test_sticking_the_landing_has_no_variance_at_the_posterior():
    _, _, found = slopes(vi.elbo(sticking=True), 50, 0.5, 0.5 * np.log(0.5))
    np.testing.assert_allclose(found, 0, atol=1e-5)
    _, _, usual = slopes(vi.elbo(), 50, 0.5, 0.5 * np.log(0.5))
    assert usual.std(axis=0).min() > 0.1


def test_doubly_reparameterised_gradients_are_unbiased_and_keep_their_signal():
    for draws in (8, 64):
        total, error, one = slopes(vi.iwae(draws), 4000)
        doubly, other, two = slopes(vi.iwae(draws, path=vi.GradientPath.DOUBLY), 4000, seed=2)
        assert (np.abs(total - doubly) < 4 * np.hypot(error, other)).all()
        signal = [np.abs(found.mean(axis=0)) / found.std(axis=0) for found in (one, two)]
        assert (signal[1] > signal[0]).all()
    few = slopes(vi.iwae(4), 4000)[2]
    assert np.abs(few.mean(axis=0) / few.std(axis=0))[0] > signal[0][0]  # it fades with draws


def coin(x):
    b = numpyro.sample("b", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(1.0 * b, 1), obs=x)


def tossed(x):
    numpyro.sample("b", dist.Bernoulli(logits=numpyro.param("t", 0.4)))


@pytest.mark.parametrize("draws", [2, 3])
def test_scores_of_weighted_bounds_are_unbiased(draws):
    """Against all outcomes of two or three coins."""

    def weights(t):
        p, q = jnp.log(jnp.array([0.7, 0.3])), jax.nn.log_sigmoid(jnp.array([-1.0, 1.0]) * t)
        return p + dist.Normal(jnp.arange(2.0), 1).log_prob(0.8) - q, q

    def exact(t):
        log_w, log_q = weights(t)
        rows = jnp.stack(jnp.meshgrid(*[jnp.arange(2)] * draws), axis=-1).reshape(-1, draws)
        bound = jax.nn.logsumexp(log_w[rows], axis=1) - jnp.log(draws)
        return jnp.sum(jnp.exp(jnp.sum(log_q[rows], axis=1)) * bound)

    def value(t, key):
        q = grad.annotate(tossed, 0.8, params={"t": t}, default=grad.score_function())
        return vi.iwae(draws)(key, vi.pair(grad.annotate(coin, 0.8), q))[0]

    mean, error, _ = mean_of(lambda key: jax.grad(value)(0.4, key), 10_000)
    assert abs(mean + jax.grad(exact)(0.4)) < 4 * error


def test_branches_are_for_means_alone():
    q = grad.annotate(tossed, 0.8, params={"t": 0.4}, default=grad.enumeration())
    pair = vi.pair(grad.annotate(coin, 0.8), q)
    loss, _ = vi.elbo()(KEY, pair)
    p, t = jnp.array([0.7, 0.3]), jax.nn.sigmoid(jnp.array([-0.4, 0.4]))
    log_w = jnp.log(p) + dist.Normal(jnp.arange(2.0), 1).log_prob(0.8) - jnp.log(t)
    chex.assert_trees_all_close(loss, -jnp.sum(t * log_w), rtol=1e-5)
    with pytest.raises(ValueError, match="score_function"):
        vi.iwae(2)(KEY, pair)


COVARIANCE = jnp.array([[1.0, 0.7, 0.0], [0.7, 1.5, -0.3], [0.0, -0.3, 0.5]])


def gaussian(data, x):
    mean, covariance = data
    return core.gaussian(mean, core.full(covariance)).log_prob(x) + 2.0


@pytest.mark.parametrize(
    ("family", "gap"),
    [
        (vi.full_rank(3), 0.0),
        (vi.low_rank(KEY, 3, 2, width=0.1), 0.0),
        # the divergence of the best independent numbers: their precisions are the target's
        (vi.mean_field(3), 0.5 * float(jnp.sum(jnp.log(jnp.diag(jnp.linalg.inv(COVARIANCE))))
                                       + jnp.linalg.slogdet(COVARIANCE)[1])),
    ],
    ids=["full rank", "low rank", "mean field"],
)  # fmt: skip
def test_families_reach_the_best_they_can(family, gap):
    mean = jnp.array([1.0, -0.5, 0.2])
    posterior = target.density(gaussian, jnp.zeros(3), (mean, COVARIANCE))
    found = vi.approximate(
        KEY, posterior, family, objective=vi.elbo(16, sticking=True), steps=1500,
        optimizer=optax.adam(optax.cosine_decay_schedule(0.02, 1500)),
    )  # fmt: skip
    pair = vi.pair(posterior, found.params)
    bound, error, _ = mean_of(lambda key: vi.elbo(16)(key, pair)[1].bound, 1000)
    assert abs(bound - (2.0 - gap)) < 4 * error + 0.01
    chex.assert_trees_all_close(found.params.mean, mean, atol=0.05)


def test_a_fit_compiles_once_and_steps_that_are_not_finite_change_nothing():
    def barred(data, x):
        return jnp.where(x[0] > data, jnp.nan, -0.5 * jnp.sum(jnp.square(x - 3)))

    traced = chex.assert_max_traces(barred, n=3)  # prior and likelihood, value and shapes
    for wall in (1.5, 2.0):
        posterior = target.density(traced, jnp.zeros(1), jnp.array(wall))
        found = vi.approximate(KEY, posterior, vi.mean_field(1), objective=vi.elbo(2), steps=300)
        assert int(found.info.skipped.sum()) > 0
        assert int(found.info.invalid.sum()) >= int(found.info.skipped.sum())
        chex.assert_tree_all_finite(found.params)


@pytest.mark.parametrize("power", [0.25, 1.0])
def test_powers_flatten_the_target(power):
    """Of N(m, C)'s density to a power the best Gaussian is N(m, C / power)."""
    posterior = target.density(gaussian, jnp.zeros(3), (jnp.ones(3), COVARIANCE))
    family = vi.approximate(
        KEY, posterior, vi.full_rank(3), objective=vi.elbo(16, sticking=True), steps=1500,
        powers=jnp.full(1500, power), optimizer=optax.adam(optax.exponential_decay(0.03, 300, 0.3)),
    ).params  # fmt: skip
    factor = family.law.covariance.factor
    # at the optimum there is no noise; Adam's last steps are of 7e-5
    chex.assert_trees_all_close(factor @ factor.T, COVARIANCE / power, rtol=5e-3, atol=5e-3)
    chex.assert_trees_all_close(family.mean, jnp.ones(3), atol=5e-3)


def test_powers_may_rise():
    rising = jnp.linspace(0.1, 1.0, 50)
    posterior = target.density(gaussian, jnp.zeros(3), (jnp.ones(3), COVARIANCE))
    found = vi.approximate(KEY, posterior, vi.mean_field(3), steps=50, powers=rising)
    chex.assert_tree_all_finite(found.params)
    with pytest.raises(ValueError, match="leading axis of 40"):
        vi.approximate(KEY, posterior, vi.mean_field(3), steps=40, powers=rising)


def test_numpyro_guides():
    found = vi.svi(KEY, model, free, 1.0, objective=vi.elbo(8, sticking=True), steps=1000)
    chex.assert_trees_all_close(found.params, {"m": 0.5, "s": 0.5 * np.log(0.5)}, atol=0.02)

    def both(x):
        scale = numpyro.param("scale", 1.0, constraint=dist.constraints.positive)
        z = numpyro.sample("z", dist.Normal(0, scale))
        numpyro.sample("x", dist.Normal(z, 1), obs=x)

    # the best prior has x^2 - 1 for variance
    found = vi.svi(KEY, both, free, 3.0, objective=vi.elbo(8, sticking=True), steps=3000)
    chex.assert_trees_all_close(found.params["scale"], 0.5 * np.log(8.0), atol=0.05)


def test_bad_input():
    def other(x):
        numpyro.sample("y", dist.Normal(0, 1))

    def more(x):
        numpyro.sample("z", dist.Normal(0, 1))
        numpyro.sample("y", dist.Normal(0, 1))

    with pytest.raises(ValueError, match=r"\['z'\] have no value"):
        vi.svi(KEY, model, other, 1.0, steps=1)
    with pytest.raises(ValueError, match=r"\['y'\] were drawn"):
        vi.svi(KEY, model, more, 1.0, steps=1)
    posterior = target.density(gaussian, jnp.zeros(3), (jnp.zeros(3), COVARIANCE))
    with pytest.raises(ValueError, match="3 numbers and q draws 2"):
        vi.approximate(KEY, posterior, vi.mean_field(2))
    with pytest.raises(TypeError, match="no log_prob"):
        vi.pair(gaussian, vi.mean_field(2))
    with pytest.raises(TypeError, match="cannot draw"):
        vi.pair(posterior, posterior)
    with pytest.raises(ValueError, match="draws"):
        vi.elbo(0)
    with pytest.raises(ValueError, match="rank"):
        vi.low_rank(KEY, 3, 4)
    with pytest.raises(ValueError, match="positive"):
        vi.mean_field(3, scale=0.0)
    with pytest.raises(ValueError, match="steps"):
        vi.approximate(KEY, posterior, vi.mean_field(3), steps=0)
