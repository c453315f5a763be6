"""Feynman-Kac correctors: the Fokker-Planck equation, and masses of mixtures by quadrature."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from on_a_line import PROCESS, Case, cases, chain, corrected, law, normal, target, z_scores

from jaxinf import core, guide, process, sampler, score


def residual(p, laws, exponents, x, t, noise):
    """What the weighted equation of p = prod q_i^a_i leaves, over p, and the weight's rate."""
    d = guide.product([score.oracle(p, law) for law in laws], exponents)
    transform = guide.drift_transform(d, noise=noise)

    def log_density(x, t):
        pairs = zip(exponents, laws, strict=True)
        return sum(a * p.marginal(law, t).log_prob(x) for a, law in pairs)

    drift, rate = transform(x, t)
    slope, curve = jax.grad(log_density)(x, t), jax.hessian(log_density)(x, t)
    divergence = jnp.trace(jax.jacfwd(lambda x: transform(x, t)[0])(x))
    c = jax.vmap(p.covariance.matvec)(jnp.eye(2, dtype=x.dtype))
    flow = -divergence - drift @ slope
    flow = flow + noise * p.dispersion_squared(t) / 2 * (jnp.sum(c * curve) + slope @ c @ slope)
    return flow + rate + jax.grad(log_density, 1)(x, t), rate


@pytest.mark.parametrize("exponents", [(1.0,), (2.5,), (1.0, 1.0), (-0.7, 1.7)])
def test_the_weighted_equation_keeps_the_product(exponents, x64):
    """d p / d tau = -div(b p) + k g^2 / 2 div(C grad p) + rate p, for every k, to rounding."""
    rng = np.random.default_rng(1)
    coloured = process.gaussian(
        process.cosine(t_max=0.99), core.dense(jnp.array([[1.0, 0.3], [0.3, 0.5]]))
    )
    single = [
        core.gaussian(jnp.asarray(rng.standard_normal(2)), core.dense(jnp.diag(jnp.asarray(v))))
        for v in ([0.4, 1.2], [0.9, 0.3])
    ]
    mixed = [
        core.mixture(
            jnp.asarray(rng.uniform(0.3, 1, 2)), jnp.asarray(rng.standard_normal((2, 2))),
            jnp.asarray(rng.uniform(0.4, 1, (2, 2))),
        )
        for _ in range(2)
    ]  # fmt: skip
    white = process.gaussian(process.cosine(t_max=0.99))
    for p, laws in ((coloured, single), (white, mixed)):
        left = jax.jit(partial(residual, p, laws[: len(exponents)], exponents))
        for t, noise in ((0.2, 1.0), (0.7, 1.0), (0.4, 0.4), (0.4, 0.0)):
            off, rate = left(jnp.array([0.3, -0.8]), t, noise)
            assert abs(float(off)) < 1e-9, (t, noise, float(off))
            if exponents == (1.0,):
                assert abs(float(rate)) < 1e-12


def plan(steps):
    return sampler.karras(PROCESS, steps, end=PROCESS.t_min)


@pytest.mark.parametrize(("name", "noise"), [("squared", 0.5), ("product", 1.0), ("guidance", 1.0)])
def test_weighted_particles_have_the_law_of_the_weighted_chain(name, noise, x64):
    """Evidence and mass of x < 0 are without bias, over independent runs."""
    case = cases()[name]
    d = case.denoiser()
    transform = guide.drift_transform(d, noise=noise)
    times = jnp.asarray(plan(40).times)
    wanted = chain(sum(case.exponents), corrected, (transform, 1.0), times)

    def run(key):
        return guide.feynman_kac(key, d, plan(40), (1,), noise=noise, particles=400)

    z = z_scores(run, jax.random.split(jax.random.key(1), 100), wanted)
    assert np.all(np.abs(z) < 4), z


def test_a_step_is_euler_maruyama(x64, key):
    """Mean, fresh noise and weight of one step, from the drift and the rate."""
    transform = guide.drift_transform(cases()["product"].denoiser(), noise=0.7)
    model = guide.WeightedDiffusion(transform, PROCESS.t_max, (1,))
    x, t, s = jnp.array([0.4]), jnp.asarray(0.9), jnp.asarray(0.8)
    drift, rate = transform(x, t)
    fresh = jax.random.normal(key, (1,)) * jnp.sqrt(0.7 * 2 * t * (t - s))
    found, log_weight = model.step(key, x, (t, s))
    np.testing.assert_allclose(found, x + (t - s) * drift + fresh, rtol=1e-12)
    np.testing.assert_allclose(log_weight, (t - s) * rate, rtol=1e-12)


def test_masses_converge_to_the_exact_ones(x64):
    """To the product's, and to others without the weights.

    What is left after the steps were halved is less than what that changed: order one or more.
    """
    case = cases()["squared"]
    transform = guide.drift_transform(case.denoiser(), noise=0.5)
    found, bare = [], []
    for steps in (50, 100):
        times = jnp.asarray(plan(steps).times)
        found.append(chain(2.0, corrected, (transform, 1.0), times).mass)
        bare.append(chain(2.0, corrected, (transform, 0.0), times).mass)
    exact = target(case, PROCESS.t_min).mass
    assert abs(target(case).mass - 0.7604) < 5e-5
    assert abs(found[1] - exact) < abs(found[1] - found[0]) < 0.02, (found, exact)
    assert exact - bare[1] > 0.15 + abs(bare[1] - bare[0]), bare


def test_the_evidence_of_gaussians(x64):
    """The integral of a product of two, N(m_1; m_2, v_1 + v_2) of the noised ones."""
    case = Case((law([1.0], [1.0], [0.5]), law([1.0], [-0.5], [2.0])), (1.0, 1.0))
    transform = guide.drift_transform(case.denoiser(), noise=0.5)
    found = [
        float(jnp.log(chain(2.0, corrected, (transform, 1.0), jnp.asarray(plan(n).times)).total))
        for n in (50, 100)
    ]
    exact = float(normal(1.5, 0.0, 2.5 + 2 * PROCESS.t_min**2))
    assert abs(found[1] - exact) < abs(found[1] - found[0]) < 0.3, (found, exact)


def test_one_expert_has_no_weights(key):
    d = guide.anneal(score.oracle(PROCESS, cases()["squared"].laws[0]), 1.0)
    run = guide.feynman_kac(key, d, plan(10), (1,), particles=50)
    np.testing.assert_array_equal(run.log_evidence, 0)
    np.testing.assert_allclose(run.info.ess, 50, rtol=1e-5)


def test_other_numbers_compile_nothing(key):
    chex.clear_trace_counter()
    expert = cases()["squared"].laws[0]

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(d, noise):
        keys = jax.random.split(key, 2)
        run = jax.vmap(lambda k: guide.feynman_kac(k, d, plan(4), (1,), noise=noise, particles=8))
        return run(keys).log_evidence

    for power in (1.5, 2.0):
        d = guide.anneal(score.oracle(PROCESS, expert), jnp.float32(power))
        assert bool(jnp.all(jnp.isfinite(draw(d, jnp.float32(1 / power)))))


def test_bad_input_is_refused(key):
    plain = score.oracle(PROCESS, cases()["squared"].laws[0])
    likelihood = guide.linear(guide.select([0]), jnp.zeros(1), 0.5)
    tilted = guide.conditioned(plain, likelihood, guide.point())
    for d in (tilted, guide.product([plain, tilted])):
        with pytest.raises(TypeError, match=r"guide\.particles"):
            guide.drift_transform(d)
    with pytest.raises(ValueError, match="noise must not be negative"):
        guide.feynman_kac(key, plain, plan(4), (1,), noise=-1.0)
    with pytest.raises(ValueError, match="exponents sum to -1"):
        guide.feynman_kac(key, guide.product([plain], (-1.0,)), plan(4), (1,))
    with pytest.raises(ValueError, match="outside the process"):
        guide.feynman_kac(key, plain, sampler.Plan(np.array([50.0, 1.0])), (1,))
