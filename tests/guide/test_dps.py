"""Diffusion posterior sampling, plain and blind: the algorithm as written, and what it is worth."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from jaxinf import core, guide, process, sampler, score

PROCESS = process.gaussian(process.cosine(t_max=0.99))
MATRIX = jnp.array([[1.0, 0.5, -0.3], [0.2, 1.5, 0.1]])
Y = jnp.array([0.7, -1.2])


def prior(dim=3):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((dim, dim))
    matrix = jnp.asarray(root @ root.T / dim + 0.3 * np.eye(dim), jnp.result_type(float))
    return score.oracle(PROCESS, core.gaussian(jnp.arange(dim) / 3.0, core.dense(matrix)))


def counts(params, x):
    return dist.Poisson(jnp.exp(MATRIX @ x))


FORMS = {
    "gaussian": (
        lambda: guide.linear(guide.projection(MATRIX), Y, 0.1), 1.0,
        lambda x: jnp.sqrt(jnp.sum((Y - MATRIX @ x) ** 2)),
    ),
    "poisson": (
        lambda: guide.observed(counts, jnp.array([2.0, 1.0])), jnp.array([0.25, 0.5]),
        lambda x: jnp.sqrt(
            jnp.sum((jnp.array([2.0, 1.0]) - jnp.exp(MATRIX @ x)) ** 2 / jnp.array([4.0, 2.0]))
        ),
    ),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_it_is_the_algorithm(form, x64, key):
    """The deterministic step written out, less zeta times the gradient of the norm."""
    make, weights, norm = FORMS[form]
    d, length = prior(), 0.3
    plan = sampler.uniform(PROCESS, 4)
    x = jax.random.normal(key, (2, 3))
    stepper = guide.dps(sampler.ddim(PROCESS), make(), length=length, weights=weights)
    found = sampler.sample(key, stepper, d, plan, x).x

    def one(x):
        for t, s in zip(plan.times[:-1], plan.times[1:], strict=True):
            clean = d(x, t)
            noise = (x - PROCESS.alpha(t) * clean) / PROCESS.sigma(t)
            down = jax.grad(lambda x, t=t: norm(d(x, t)))(x)
            x = PROCESS.alpha(s) * clean + PROCESS.sigma(s) * noise - length * down
        return x

    np.testing.assert_allclose(found, jax.vmap(one)(x), rtol=1e-10)
    assert plan.calls(stepper) == 4


def test_the_observation_is_explained(key):
    """Samples explain it better than the prior's: all that the method promises."""
    d = prior()
    x = PROCESS.prior().sample(key, (400, 3))
    plan = sampler.uniform(PROCESS, 60)
    likelihood = guide.linear(guide.projection(MATRIX), Y, 0.5)
    plain = sampler.ancestral(PROCESS)
    found, free = (
        sampler.sample(key, stepper, d, plan, x).x
        for stepper in (guide.dps(plain, likelihood, length=0.3), plain)
    )

    def left(x):
        return float(jnp.mean(jnp.linalg.norm(jax.vmap(likelihood.residual)(x), axis=1)))

    assert left(found) < 0.5 * left(free)


def test_a_residual_of_nothing_has_no_gradient(key):
    """Where all is explained, and where nothing was seen, the wrapped stepper is left as it is."""
    d = prior()
    x = PROCESS.prior().sample(key, (2, 3))
    plan = sampler.uniform(PROCESS, 3)
    plain = sampler.ddim(PROCESS)
    blind = guide.linear(guide.projection(MATRIX), Y, jnp.inf)
    found = sampler.sample(key, guide.dps(plain, blind), d, plan, x)
    np.testing.assert_array_equal(found.x, sampler.sample(key, plain, d, plan, x).x)


def test_other_numbers_compile_nothing(key):
    chex.clear_trace_counter()
    d = prior()

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(stepper, x):
        return jax.vmap(lambda k: sampler.sample(k, stepper, d, sampler.uniform(PROCESS, 2), x).x)(
            jax.random.split(key, 2)
        )

    for length in (0.1, 0.5):
        likelihood = guide.linear(guide.projection(MATRIX), Y * length, length)
        made = guide.dps(sampler.ancestral(PROCESS), likelihood, length=jnp.float32(length))
        assert bool(jnp.all(jnp.isfinite(draw(made, jnp.ones((1, 3))))))


def test_bad_input_is_refused():
    plain = sampler.ddim(PROCESS)
    likelihood = guide.linear(guide.projection(MATRIX), Y, 0.1)
    with pytest.raises(TypeError, match=r"guide\.point"):
        guide.dps(plain, guide.interval(lambda p, x: x, 0.0, 1.0))
    with pytest.raises(ValueError, match="length must be positive"):
        guide.dps(plain, likelihood, length=0.0)
    with pytest.raises(ValueError, match="weights must not be negative"):
        guide.dps(plain, likelihood, weights=-1.0)
