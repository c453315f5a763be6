"""Score models as priors: exact densities, gradients and draws, and posteriors by every driver."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxinf import core, guide, markov, mcmc, process, sampler, score, smc, target, vi

COSINE = process.gaussian(process.cosine())


def gaussian(d):
    """A Gaussian with correlations."""
    random = np.random.default_rng(d)
    root = random.normal(size=(d, d))
    covariance = jnp.asarray(root @ root.T / d + 0.3 * np.eye(d))
    return core.gaussian(jnp.asarray(0.3 * random.normal(size=d)), core.dense(covariance))


def two_modes():
    """A mixture in the plane."""
    means = jnp.array([[-1.2, 0.5], [1.0, -0.3]])
    return core.mixture(jnp.array([0.35, 0.65]), means, jnp.array([0.45, 0.6]))


def prior_of(law, d, steps, **options):
    """The prior of a perfect score model."""
    plan = sampler.uniform(COSINE, steps, end=COSINE.t_min)
    return guide.score_prior(score.oracle(COSINE, law), (d,), plan=plan, **options)


def seen(data, x):
    """Log density of y = A x + n."""
    matrix, y, scale = data
    return core.log_prob(core.Diagonal(scale), y - matrix @ x)


def linear_problem(steps=10):
    """A posterior under a Gaussian prior, and its law and log evidence by Kalman's formula."""
    law, random = gaussian(3), np.random.default_rng(1)
    data = jnp.asarray(random.normal(size=(2, 3))), jnp.array([0.7, -0.4]), jnp.full(2, 0.5)
    posterior = target.density(seen, jnp.zeros(3), data, prior=prior_of(law, 3, steps))
    kernel = markov.linear_gaussian(data[0], core.Diagonal(data[2]))
    return posterior, *kernel.observe(law, data[1])


@pytest.mark.parametrize(("law", "d"), [(gaussian(4), 4), (two_modes(), 2)])
def test_density_and_gradient_are_exact(law, d, x64, key):
    """log p within 1e-4 of the law's own, its gradient that of the score at t_min.

    Against the law at t_min, with 40 steps, only the integrator's error is left: 3e-7 for the
    Gaussian; the mixture's fields bend more.
    """
    law = jax.tree.map(lambda a: a.astype(float), law)
    prior, exact = prior_of(law, d, 40), COSINE.marginal(law, COSINE.t_min)
    x = jax.vmap(law.sample)(jax.random.split(key, 8))
    value, gradient = jax.jit(jax.vmap(jax.value_and_grad(prior.log_prob)))(x)
    wanted, slopes = jax.vmap(jax.value_and_grad(exact.log_prob))(x)
    np.testing.assert_allclose(value, wanted, atol=1e-5, rtol=0)
    np.testing.assert_allclose(gradient, slopes, atol=1e-4, rtol=0)
    np.testing.assert_allclose(value, jax.vmap(law.log_prob)(x), atol=1e-4, rtol=0)


def test_draws_are_the_flow_of_the_reference(x64, key):
    """With a Gaussian law the flow is x -> m + A x, of which A A^T sigma^2 is the covariance."""
    law = gaussian(3)
    prior, exact = prior_of(law, 3, 40), COSINE.marginal(law, COSINE.t_min)

    def carried(x_T):
        point = core.Gaussian(x_T, core.Diagonal(0.0))
        return prior_of(law, 3, 40, reference=point).sample(key)

    starts = jnp.concatenate([jnp.zeros((1, 3)), jnp.eye(3)])
    ends = jax.jit(jax.vmap(carried))(starts)
    columns = COSINE.sigma(COSINE.t_max) * (ends[1:] - ends[:1])
    np.testing.assert_allclose(ends[0], exact.mean, atol=1e-5)
    np.testing.assert_allclose(columns.T @ columns, exact.covariance.dense(3), atol=1e-5)
    x = prior.sample(key)
    np.testing.assert_allclose(prior.log_prob(x), exact.log_prob(x), atol=1e-5)


def test_hutchinson_is_unbiased_over_keys_and_still_for_one(x64, key):
    """Values and gradients average to the exact ones; one key is one function."""
    law = gaussian(4)
    exact = prior_of(law, 4, 10)
    x = law.sample(key)

    @jax.jit
    @jax.vmap
    def estimate(key):
        prior = prior_of(law, 4, 10, trace=score.hutchinson(2), key=key)
        return jnp.append(*jax.value_and_grad(prior.log_prob)(x)[::-1])

    found = np.asarray(estimate(jax.random.split(key, 400)))
    wanted = np.append(*jax.value_and_grad(exact.log_prob)(x)[::-1])
    z = (found.mean(0) - wanted) / (found.std(0, ddof=1) / np.sqrt(len(found)))
    assert np.abs(z[-1]) < 4  # the field is linear in x, so that gradients do not vary
    np.testing.assert_allclose(found[:, :-1], np.tile(wanted[:-1], (400, 1)), atol=1e-10)
    assert found[:, -1].std() > 0.01
    prior = prior_of(law, 4, 10, trace=score.hutchinson(2), key=key)
    np.testing.assert_array_equal(*(jax.jit(prior.log_prob)(x) for _ in range(2)))


def test_fresh_probes_are_unbiased_for_the_bound(x64, key):
    """Over keys the objective with new probes has the exact trace's mean, value and slope.

    The mixture's field is not linear, so that slopes vary with the probes too.
    """
    family, law = vi.mean_field(2, scale=0.5), two_modes()
    estimated = prior_of(law, 2, 6, trace=score.hutchinson(), key=key)
    objective = vi.elbo(2)

    def slopes(prior, objective, key):
        posterior = target.density(lambda _, x: -jnp.sum(x**2) / 8, jnp.zeros(2), prior=prior)

        def loss(family):
            return objective(key, vi.pair(posterior, family))[0]

        value, slope = jax.value_and_grad(loss)(family)
        return jnp.concatenate([value[None], slope.mean, slope.log_scale])

    @jax.jit
    @jax.vmap
    def both(key):
        _, same = jax.random.split(key)  # the draws of the family that fresh_probes leaves
        return slopes(estimated, guide.fresh_probes(objective), key), slopes(
            prior_of(law, 2, 6), objective, same
        )

    fresh, exact = (np.asarray(a) for a in both(jax.random.split(key, 800)))
    apart = fresh - exact
    assert (apart.std(0) > 0.01).all()
    assert np.abs(apart.mean(0) / (apart.std(0, ddof=1) / np.sqrt(len(apart)))).max() < 4


@pytest.mark.parametrize("name", ["full_rank", "affine_coupling"])
def test_variational_posterior_is_kalmans(name, x64, key):
    """Mean and covariance within 1e-2, and the bound is the evidence."""
    posterior, exact, log_evidence = linear_problem()
    family = {
        "full_rank": lambda: vi.full_rank(3),
        "affine_coupling": lambda: vi.affine_coupling_flow(key, 3, 4, width=16),
    }[name]()
    steps = 400
    optimizer = optax.adam(optax.cosine_decay_schedule(3e-2, steps))
    found = vi.approximate(
        key, posterior, family, objective=vi.elbo(16, sticking=True), steps=steps,
        optimizer=optimizer,
    )  # fmt: skip
    x = jax.vmap(found.params.sample)(jax.random.split(key, 200_000))
    np.testing.assert_allclose(x.mean(0), exact.mean, atol=1e-2)
    np.testing.assert_allclose(jnp.cov(x.T), exact.covariance.dense(3), atol=1e-2)
    assert abs(float(found.info.bound[-20:].mean() - log_evidence)) < 1e-2


def test_both_modes_have_their_share(key):
    """Of a two-mode prior, seen along one line, within 0.05 of the exact posterior's."""
    law, steps = two_modes(), 600
    data = jnp.array([[0.5, 1.0]]), jnp.array([0.2]), jnp.array([0.8])
    posterior = target.density(seen, jnp.zeros(2), data, prior=prior_of(law, 2, 10))
    draws = jax.vmap(law.sample)(jax.random.split(key, 400_000))
    weights = jax.nn.softmax(jax.vmap(posterior.log_likelihood)(draws))
    wanted = float(jnp.sum(weights * (draws[:, 0] < 0)))  # 0.385
    found = vi.approximate(
        key, posterior, vi.spline_coupling_flow(key, 2, 3, width=16, bins=8),
        objective=vi.elbo(32), powers=jnp.minimum(1, 0.1 + jnp.arange(steps) / (steps / 2)),
        steps=steps, optimizer=optax.adam(optax.cosine_decay_schedule(1e-2, steps)),
    )  # fmt: skip
    x = jax.vmap(found.params.sample)(jax.random.split(key, 50_000))
    assert abs(float(jnp.mean(x[:, 0] < 0)) - wanted) < 0.05


def test_chains_and_particles_run_on_it(key):
    """The evidence by tempering and the mean by chains, within 4 standard errors."""
    posterior, exact, log_evidence = linear_problem(5)
    walk = mcmc.random_walk(0.5)
    runs = [
        smc.temper(key, posterior, particles=200, kernel=walk, moves=2)
        for key in jax.random.split(key, 10)
    ]
    ratio = np.exp([float(run.log_evidence - log_evidence) for run in runs])
    assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(len(ratio))
    run = mcmc.sample(key, walk, posterior, chains=30, warmup=100, draws=200)
    means = np.asarray(run.draws.mean(1))
    z = (means.mean(0) - exact.mean) / (means.std(0, ddof=1) / np.sqrt(len(means)))
    assert np.abs(z).max() < 4


def test_other_numbers_compile_nothing_and_batches_are_mapped(key):
    traced = chex.assert_max_traces(lambda prior, x: jax.vmap(prior.log_prob)(x), n=1)
    once = jax.jit(traced)
    x = jnp.ones((3, 2))
    values = []
    for seed in range(2):
        law = core.gaussian(jnp.full(2, 0.1 * seed), core.Diagonal(jnp.full(2, 0.5 + seed)))
        trace, probes = score.hutchinson(), jax.random.key(seed)
        values.append(once(prior_of(law, 2, 4, trace=trace, key=probes), x))
    assert values[0].shape == (3,)
    assert float(values[0][0]) != float(values[1][0])


def test_bad_input_names_its_mend():
    model = score.oracle(COSINE, gaussian(2))
    plan = sampler.uniform(COSINE, 3, end=COSINE.t_min)
    with pytest.raises(ValueError, match=r"end the plan at process\.t_min"):
        guide.score_prior(model, (2,), plan=sampler.uniform(COSINE, 3))
    with pytest.raises(ValueError, match=r"key=jax\.random\.key\(0\)"):
        guide.score_prior(model, (2,), plan=plan, trace=score.hutchinson())
    with pytest.raises(TypeError, match=r"process\.marginal"):
        guide.score_prior(model, (2,), plan=plan, reference=COSINE.prior)
    with pytest.raises(ValueError, match="the reference draws"):
        guide.score_prior(model, (3,), plan=plan, reference=gaussian(2))
