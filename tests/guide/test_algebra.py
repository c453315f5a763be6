"""The algebra of denoisers: on Gaussians every composition is known in closed form."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, process, sampler, score

PROCESS = process.gaussian(process.cosine(t_max=0.99))
MEANS, SCALES = ((0.5, -1.0, 2.0), (-0.4, 0.3, 0.0)), (0.7, 1.3)


def expert(i, p=PROCESS):
    return score.oracle(
        p, core.gaussian(jnp.asarray(MEANS[i]), core.Diagonal(jnp.full(3, SCALES[i])))
    )


def point():
    return jnp.array([0.3, -0.8, 1.1])


def score_of(d, x, t):
    return (PROCESS.alpha(t) * d(x, t) - x) / PROCESS.sigma(t) ** 2


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("exponents", [(1.0, 1.0), (2.5, -0.5), (0.3, 0.7)])
def test_the_score_is_that_of_the_product_of_noised_gaussians(exponents, t, x64):
    alpha, variance = PROCESS.alpha(t), PROCESS.sigma(t) ** 2
    pairs = zip(exponents, MEANS, SCALES, strict=True)
    wanted = sum(
        a * (alpha * jnp.asarray(m) - point()) / (alpha**2 * s**2 + variance) for a, m, s in pairs
    )
    d = guide.product([expert(0), expert(1)], exponents)
    np.testing.assert_allclose(score_of(d, point(), t), wanted, rtol=1e-10)


def test_a_product_of_products_is_flat(x64):
    a, b = expert(0), expert(1)
    nested = guide.anneal(guide.product([a, guide.product([a, b], (2.0, -1.0))], (0.5, 1.5)), 2.0)
    flat = guide.product([a, a, b], (1.0, 6.0, -3.0))
    for full in (False, True):
        found, wanted = (d.evaluate(point(), 0.4, None, full) for d in (nested, flat))
        np.testing.assert_allclose(found.exponents, wanted.exponents, rtol=1e-12)
        chex.assert_trees_all_close(found.experts, wanted.experts, rtol=1e-12)
        chex.assert_trees_all_close(found.guided, wanted.guided, rtol=1e-9, atol=1e-12)


FORMS = {
    "anneal": (lambda a, b: guide.anneal(a, 1.7), (1.7, 0.0)),
    "contrast": (lambda a, b: guide.contrast(a, b, 3.0), (3.0, -2.0)),
    "interpolate": (lambda a, b: guide.interpolate(a, b, 0.25), (0.75, 0.25)),
    "geometric mean": (lambda a, b: guide.geometric_mean([a, b], [1.0, 3.0]), (0.25, 0.75)),
    "mean": (lambda a, b: guide.geometric_mean([a, b]), (0.5, 0.5)),
    "product": (lambda a, b: guide.product([a, b]), (1.0, 1.0)),
}


@pytest.mark.parametrize("form", FORMS)
def test_the_formulas(form, x64):
    """D = sum a_i D_i + (1 - sum a_i) x / alpha, with the exponents that each name says."""
    make, (p, q) = FORMS[form]
    a, b, x, t = expert(0), expert(1), point(), 0.4
    wanted = p * a(x, t) + q * b(x, t) + (1 - p - q) * x / PROCESS.alpha(t)
    np.testing.assert_allclose(make(a, b)(x, t), wanted, rtol=1e-12)


def test_guidance_is_that_of_the_score_room(x64):
    """A contrast of one model under a condition and none."""

    def apply(params, x, t, cond):
        return params * x + cond

    model = score.denoiser(PROCESS, apply, jnp.asarray(0.3), predicts=process.v)
    null, cond = jnp.zeros(3), jnp.array([0.1, 0.2, 0.3])
    d = guide.contrast(guide.given(model, cond), guide.given(model, null), 2.5)
    wanted = score.guided(model, null=null, scale=2.5)(point(), 0.4, cond)
    np.testing.assert_allclose(d(point(), 0.4), wanted, rtol=1e-10)


def test_the_covariance_is_tweedies(x64):
    """Of a composition as of one denoiser: (sigma^2 / alpha) times its derivative."""
    d = guide.product([expert(0), expert(1)], (1.5, 0.8))
    found = d.evaluate(point(), 0.4, None, True).guided
    mean, covariance = sampler.tweedie(PROCESS, lambda x: d(x, 0.4), point(), 0.4)
    np.testing.assert_allclose(found.mean, mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-10, atol=1e-13)


def rolled(x):
    return jnp.roll(x, 1)


def turned(x):
    """A rotation of the first two numbers."""
    c, s = np.cos(0.7), np.sin(0.7)
    return jnp.stack([c * x[0] - s * x[1], s * x[0] + c * x[1], x[2]])


def identity(x):
    return x


@pytest.mark.parametrize("t", [0.1, 0.8])
def test_views_of_isotropic_gaussians_are_one(t, x64):
    """The averaged score is exactly the diffused score of N(mean_i V_i^T m_i, s^2 I)."""
    maps, s = [identity, rolled, turned], 0.6
    means = np.random.default_rng(0).standard_normal((3, 3))
    laws = [core.gaussian(jnp.asarray(m), core.Diagonal(jnp.full(3, s))) for m in means]
    d = guide.views([score.oracle(PROCESS, law) for law in laws], maps, (3,))
    matrices = [np.asarray(jax.jacfwd(v)(jnp.zeros(3))) for v in maps]
    centre = np.mean([v.T @ m for v, m in zip(matrices, means, strict=True)], axis=0)
    one = score.oracle(PROCESS, core.gaussian(jnp.asarray(centre), core.Diagonal(jnp.full(3, s))))
    np.testing.assert_allclose(d(point(), t), one(point(), t), rtol=1e-12)
    found = d.evaluate(point(), t, None, True).guided.covariance
    wanted = sampler.tweedie(PROCESS, lambda x: one(x, t), point(), t)[1]
    np.testing.assert_allclose(found, wanted, rtol=1e-10, atol=1e-13)


def test_a_view_that_is_not_orthogonal_breaks_the_noise():
    """A scaling makes of white noise another: what the check is for, and what it says."""
    z = jax.random.normal(jax.random.key(0), (20000, 3))
    error = 4 * np.sqrt(2 / 20000)
    for view, variance in ((turned, 1.0), (rolled, 1.0), (lambda x: 1.5 * x, 2.25)):
        found = jnp.var(jax.vmap(view)(z), axis=0)
        assert bool(jnp.all(jnp.abs(found / variance - 1) < error))
    with pytest.raises(ValueError, match="view 1 is not orthogonal"):
        guide.views(expert(0), [identity, lambda x: 1.5 * x], (3,))
    with pytest.raises(ValueError, match="must keep the shape"):
        guide.views(expert(0), [lambda x: x[:2]], (3,))
    with pytest.raises(ValueError, match="pass one each"):
        guide.views([expert(0)], [identity, rolled], (3,))


def test_a_joint_has_its_parts_laws(x64):
    """Independent Gaussians side by side are one Gaussian; parts come and go as they were."""
    j = guide.joint({"a": expert(0), "b": expert(1)}, {"a": jnp.zeros(3), "b": jnp.zeros(3)})
    law = core.gaussian(
        jnp.asarray(MEANS[0] + MEANS[1]), core.Diagonal(jnp.repeat(jnp.asarray(SCALES), 3))
    )
    x = jnp.concatenate([point(), -2 * point()])
    np.testing.assert_allclose(j(x, 0.4), score.oracle(PROCESS, law)(x, 0.4), rtol=1e-12)
    np.testing.assert_array_equal(j.join(j.split(x)), x)
    np.testing.assert_array_equal(j.split(x)["b"], -2 * point())


def test_compositions_that_mean_nothing_are_refused():
    other = process.gaussian(process.edm())
    with pytest.raises(ValueError, match="processes differ"):
        guide.product([expert(0), expert(1, other)])
    with pytest.raises(ValueError, match="takes denoisers and an exponent each"):
        guide.product([expert(0)], (1.0, 2.0))
    with pytest.raises(ValueError, match="takes denoisers"):
        guide.product([])
    with pytest.raises(ValueError, match="power must be positive"):
        guide.anneal(expert(0), 0.0)
    ends = process.gaussian(process.cosine())
    with pytest.raises(ValueError, match=r"alpha\(t_max\) > 0"):
        guide.product([expert(0, ends), expert(1, ends)])
    guide.contrast(expert(0, ends), expert(1, ends), 2.0)  # whose exponents sum to 1


def test_joints_that_mean_nothing_are_refused():
    like = (jnp.zeros(3), jnp.zeros(3))
    with pytest.raises(ValueError, match="a denoiser for every part"):
        guide.joint((expert(0),), like)
    with pytest.raises(TypeError, match="weights would be lost"):
        guide.joint((expert(0), guide.anneal(expert(1), 2.0)), like)
    coloured = process.gaussian(process.cosine(), core.dense(jnp.eye(3)))
    with pytest.raises(ValueError, match="white noise"):
        guide.joint((expert(0, coloured), expert(1, coloured)), like)


def test_exponents_without_a_density_are_refused(key):
    d = guide.product([expert(0), expert(1)], (1.0, -1.0))
    plan = sampler.uniform(PROCESS, 3, end=PROCESS.t_min)
    with pytest.raises(ValueError, match="exponents sum to 0"):
        guide.particles(key, sampler.ancestral(PROCESS), d, plan, (3,))
    ends = sampler.uniform(PROCESS, 3)
    with pytest.raises(ValueError, match="last step to time 0 has no density"):
        guide.particles(key, sampler.ancestral(PROCESS), expert(0), ends, (3,))
    with pytest.raises(TypeError, match="no proposal"):
        guide.particles(key, sampler.heun(PROCESS), expert(0), ends, (3,))
