"""Targets: programs against their densities by hand, functions, and what they refuse."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy import stats

from jaxinf import core, target

SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
Y = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])


def eight_schools(sigma, y):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    with numpyro.plate("schools", len(sigma)):
        z = numpyro.sample("z", dist.Normal(0, 1))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def test_a_program_is_its_density(key, x64):
    posterior = target.program(eight_schools, SIGMA, Y)
    assert posterior.names == ("mu", "tau", *(f"z[{i}]" for i in range(8)))
    z = jax.random.normal(key, (posterior.dim,))
    mu, tau, school = z[0], jnp.exp(z[1]), z[2:]
    prior = stats.norm.logpdf(mu, 0, 5) + jnp.log(2) + stats.cauchy.logpdf(tau, 0, 5) + z[1]
    prior += stats.norm.logpdf(school).sum()
    seen = stats.norm.logpdf(Y, mu + tau * school, SIGMA).sum()
    np.testing.assert_allclose(posterior.log_prior(z), prior, rtol=1e-12)
    np.testing.assert_allclose(posterior.log_likelihood(z), seen, rtol=1e-12)
    np.testing.assert_allclose(posterior.log_prob(z), prior + seen, rtol=1e-12)
    values = posterior.constrain(z, deterministic=True)
    np.testing.assert_allclose(values.pop("theta"), mu + tau * school, rtol=1e-12)
    np.testing.assert_allclose(posterior.unconstrain(values), z, rtol=1e-10, atol=1e-12)


def bounded(counts):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 3.0))
    shares = numpyro.sample("shares", dist.Dirichlet(jnp.ones(3)))
    edges = numpyro.sample("edges", dist.Uniform(-1, 2).expand([2]))
    numpyro.factor("tilt", -edges.sum())
    numpyro.sample("counts", dist.Poisson(rate * (1 + shares[0])), obs=counts)


def test_bounded_sites_count_their_jacobian(x64):
    """The prior integrates to one over positions, by draws of a wide normal."""
    posterior = target.program(bounded, np.array([2, 5]))
    assert posterior.dim == 1 + 2 + 2
    z = posterior.sample_prior(jax.random.key(1))
    values = posterior.constrain(z)
    np.testing.assert_allclose(values["shares"].sum(), 1, rtol=1e-12)
    proposal = dist.StudentT(5.0, 0.0, 2.5).expand([5]).to_event(1)
    draws = proposal.sample(jax.random.key(2), (20_000,))
    weights = jnp.exp(jax.jit(jax.vmap(posterior.log_prior))(draws) - proposal.log_prob(draws))
    assert abs(weights.mean() - 1) < 4 * weights.std() / np.sqrt(len(draws))
    seen = stats.poisson.logpmf(np.array([2, 5]), values["rate"] * (1 + values["shares"][0])).sum()
    np.testing.assert_allclose(posterior.log_likelihood(z), seen - values["edges"].sum(), rtol=1e-9)


def test_priors_are_drawn_from(key):
    posterior = target.program(eight_schools, SIGMA, Y)
    z = jax.jit(jax.vmap(posterior.sample_prior))(jax.random.split(key, 4000))
    # The median of a half Cauchy law is its scale.
    below = np.mean(z[:, 1] < np.log(5))
    assert abs(below - 0.5) < 4 * 0.5 / np.sqrt(4000)
    assert abs(z[:, 0].std() - 5) < 4 * 5 / np.sqrt(2 * 4000)


def test_other_data_recompile_nothing():
    z = jnp.zeros(10)
    log_prob = jax.jit(chex.assert_max_traces(lambda target, z: target.log_prob(z), n=1))
    first = log_prob(target.program(eight_schools, SIGMA, Y), z)
    assert first != log_prob(target.program(eight_schools, SIGMA, Y + 1), z)


def likelihood(data, x):
    return -jnp.sum(jnp.square(data - x["a"])) - x["b"] ** 4


def test_a_function_with_a_prior():
    like = {"a": jnp.zeros(3), "b": jnp.zeros(())}
    flat = target.density(likelihood, like, jnp.ones(3))
    assert flat.names == ("a[0]", "a[1]", "a[2]", "b")
    z = jnp.arange(4.0)
    assert flat.log_prob(z) == flat.log_likelihood(z) == -(1 + 0 + 1) - 81.0
    assert flat.log_prior(z) == 0
    chex.assert_trees_all_equal(flat.constrain(z), {"a": z[:3], "b": z[3]})
    np.testing.assert_array_equal(flat.unconstrain(flat.constrain(z)), z)
    law = core.gaussian(jnp.ones(2), core.Diagonal(2.0))
    with_prior = target.density(lambda data, x: x.sum(), jnp.zeros(2), prior=law)
    z = with_prior.sample_prior(jax.random.key(0))
    np.testing.assert_allclose(with_prior.log_prob(z), law.log_prob(z) + z.sum(), rtol=1e-6)


def no_latent(y):
    numpyro.sample("y", dist.Normal(0, 1), obs=y)


def discrete(y):
    k = numpyro.sample("k", dist.Bernoulli(0.5))
    numpyro.sample("y", dist.Normal(k, 1), obs=y)


def with_param(y):
    numpyro.sample("m", dist.Normal(numpyro.param("p", 1.0), 1))


def flat_scale(y):
    scale = numpyro.sample("scale", dist.ImproperUniform(dist.constraints.positive, (), ()))
    numpyro.sample("y", dist.Normal(0, scale), obs=y)


def positive(y):
    rate = numpyro.sample("rate", dist.Gamma(1.0))
    numpyro.sample("y", dist.Exponential(rate), obs=y)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (no_latent, "has no latent site"),
        (discrete, "'k' is discrete"),
        (with_param, "parameter 'p'"),
        (positive, "2 observations of 'y' lie outside the support of Exponential"),
    ],
)
def test_programs_that_are_no_target(model, message):
    with pytest.raises(ValueError, match=message):
        target.program(model, np.array([-1.0, 2.0, -3.0]))


def test_what_is_wrong_is_said():
    flat = target.density(likelihood, {"a": jnp.zeros(3), "b": jnp.zeros(())}, jnp.ones(3))
    with pytest.raises(ValueError, match="one vector of 4 numbers"):
        flat.log_prob(jnp.zeros(5))
    with pytest.raises(ValueError, match="has no prior to draw from"):
        flat.sample_prior(jax.random.key(0))
    with pytest.raises(ValueError, match="expected values of the form"):
        flat.unconstrain({"a": jnp.zeros(2), "b": jnp.zeros(())})
    with pytest.raises(ValueError, match="must hold numbers"):
        target.density(likelihood, {})
    vector = target.density(lambda data, x: x, jnp.zeros(2))
    with pytest.raises(ValueError, match="must be one number"):
        vector.log_prob(jnp.zeros(2))
    improper = target.program(flat_scale, Y)
    assert improper.log_prior(jnp.array([0.7])) == 0.7, "the Jacobian of the exponential alone"
    with pytest.raises(ValueError, match="one of its sites is improper"):
        improper.sample_prior(jax.random.key(0))
    posterior = target.program(eight_schools, SIGMA, Y)
    with pytest.raises(ValueError, match=r"latent sites \['tau', 'z'\] have no value"):
        posterior.unconstrain({"mu": jnp.zeros(())})
