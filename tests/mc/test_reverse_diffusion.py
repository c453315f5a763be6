"""Reverse diffusion Monte Carlo on mixtures, whose diffused score has a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxinf import core, mc, process, sampler, score, target
from jaxinf.run.mesh import make_mesh
from jaxinf.sampler.driver import _sample

WEIGHTS, CENTRES, SD = np.array([0.3, 0.7]), np.array([-4.0, 4.0]), 0.5


def log_mixture(centres, x):
    parts = jnp.log(jnp.asarray(WEIGHTS, x.dtype)) - (x[0] - centres) ** 2 / (2 * SD**2)
    return jax.nn.logsumexp(parts)


def mixture():
    return target.density(log_mixture, jnp.zeros(1), jnp.asarray(CENTRES, jnp.float32))


def oracle(ou):
    law = core.mixture(
        jnp.asarray(WEIGHTS, jnp.float32),
        jnp.asarray(CENTRES, jnp.float32)[:, None],
        jnp.full(2, SD, jnp.float32),
    )
    return score.oracle(ou, law)


def exact(x, t):
    """E[x_0 | x_t = x] of the mixture, in float64."""
    alpha, noise = np.exp(-t), -np.expm1(-2 * t)
    total = alpha**2 * SD**2 + noise
    means = CENTRES + alpha * SD**2 / total * (x[:, None] - alpha * CENTRES)
    logs = np.log(WEIGHTS) - (x[:, None] - alpha * CENTRES) ** 2 / (2 * total)
    resp = np.exp(logs - logs.max(1, keepdims=True))
    return (resp * means).sum(1) / resp.sum(1)


def test_the_oracle_of_this_file_is_the_library_s(x64):
    ou = mc.ornstein_uhlenbeck()
    x = np.linspace(-3, 3, 7)
    for t in (0.2, 1.0):
        found = jax.vmap(oracle(ou), (0, None))(jnp.asarray(x)[:, None], t)[:, 0]
        np.testing.assert_allclose(found, exact(x, t), rtol=1e-5)


def errors(method, x, t, repeats):
    """The estimate's errors, [repeats, len(x)]."""
    denoise = mc.reverse_diffusion(mc.ornstein_uhlenbeck(), mixture(), method)
    keys = jax.random.split(jax.random.key(3), (repeats, len(x)))
    rows = jax.vmap(lambda key, x: denoise.estimate(key, x[None], t)[0][0])
    found = jax.jit(jax.vmap(rows, (0, None)))(keys, jnp.asarray(x, jnp.float32))
    return np.asarray(found, np.float64) - exact(x, t)


def test_importance_converges_at_the_root_of_draws():
    """Variance and bias are those of a ratio of means, by quadrature, to leading order.

    With w = pi over the proposal q: variance E[w^2 (z - m)^2] / n and bias
    -E[w^2 (z - m)] / n, for w of mean 1 under q.
    """
    t, x = 0.7, np.array([-1.0, 0.3, 1.5])
    alpha, sigma = np.exp(-t), np.sqrt(-np.expm1(-2 * t))
    grid = np.linspace(-12, 12, 20_001)
    for n in (400, 1600):
        off = errors(mc.importance(n), x, t, 2000)
        for i, centre in enumerate(x):
            q = np.exp(-((centre - alpha * grid) ** 2) / (2 * sigma**2))
            q /= q.sum()
            w = np.exp(
                np.logaddexp.reduce(
                    np.log(WEIGHTS) - (grid[:, None] - CENTRES) ** 2 / (2 * SD**2), axis=1
                )
            )
            w /= q @ w
            m = q @ (w * grid)
            np.testing.assert_allclose(m, exact(x, t)[i], rtol=1e-6)
            variance = q @ (w**2 * (grid - m) ** 2) / n
            bias = -(q @ (w**2 * (grid - m))) / n
            # the next order is E[w^2] / n of it, and the standard errors of 2000 draws
            share = 3 * (q @ w**2) / n
            assert abs(off[:, i].mean() - bias) < 4 * np.sqrt(variance / 2000) + share * abs(bias)
            assert abs(off[:, i].var() / variance - 1) < 4 * np.sqrt(4 / 2000) + share


def test_langevin_finds_the_mean_of_a_gaussian_posterior():
    """Where the target is Gaussian, unadjusted chains have no bias in the mean."""
    normal = target.density(lambda _, x: -jnp.sum((x - 1) ** 2) / 2, jnp.zeros(2))
    ou = mc.ornstein_uhlenbeck()
    denoise = mc.reverse_diffusion(ou, normal, mc.langevin(50, 30, step_size=0.3))
    x, t = jnp.array([0.5, -1.0]), 0.4
    keys = jax.random.split(jax.random.key(4), 1000)
    found, info = jax.jit(jax.vmap(denoise.estimate, (0, None, None)))(keys, x, t)
    alpha, noise = np.exp(-t), -np.expm1(-2 * t)
    wanted = (alpha * np.asarray(x) / noise + 1) / (alpha**2 / noise + 1)
    error = np.asarray(found).std(0) / np.sqrt(len(keys))
    # 30 steps of contraction 0.7 leave 2e-5 of the start's error, itself below 1
    assert np.all(abs(np.asarray(found, np.float64).mean(0) - wanted) < 4 * error + 3e-5)
    # the variance of the mean of 50 chains: the unadjusted one's, over 50
    h = 0.3 / (alpha**2 / noise + 1)
    curvature = alpha**2 / noise + 1
    variance = 1 / (curvature * (1 - h * curvature / 2)) / 50
    np.testing.assert_allclose(np.asarray(found).var(0), variance, rtol=4 * np.sqrt(2 / 1000))
    assert info.finite.all()


def run(denoiser, steps, n=2000):
    ou = mc.ornstein_uhlenbeck()
    start = ou.prior().sample(jax.random.key(1), (n, 1))
    plan = sampler.karras(ou, steps, rho=3.0)
    keys = jax.random.split(jax.random.key(3), n)
    return sampler.sample(jax.random.key(2), sampler.ancestral(ou), denoiser, plan, start, keys)


def test_the_mass_of_the_modes():
    """Within four standard errors and the divergences of start, grid and score.

    The start: KL(p_T, N(0, 1)) <= e^{-2 T} E x^2 / 2 (and sigma_T is 1 to 2e-5), total variation by
    Pinsker. The oracle's chain with the same noise measures the grid, and the share of samples that
    the two chains send to different modes is the score's.
    """
    ou, steps, n, draws = mc.ornstein_uhlenbeck(), 40, 2000, 500
    denoise = mc.reverse_diffusion(ou, mixture(), mc.importance(draws))
    found = run(denoise, steps, n)
    assert found.info.finite.all()
    chain = np.asarray(run(oracle(ou), steps, n).x[:, 0])
    right = np.asarray(found.x[:, 0]) > 0
    start = np.sqrt(np.exp(-10) * (16 + SD**2) / 2 / 2)
    error = np.sqrt(0.7 * 0.3 / n)
    assert abs(np.mean(chain > 0) - 0.7) < 4 * error + start
    # the two chains share their noise, and differ where the score's error decided
    flips = right != (chain > 0)
    assert abs(right.mean() - 0.7) < 4 * error + start + flips.mean()
    assert flips.mean() < 0.05
    left = jnp.full((64, 1), -4.0)  # unadjusted Langevin from the left mode never leaves it
    stuck = mc.structured_sgld(jax.random.key(5), mixture(), left, step_size=0.05, steps=3000)
    assert jnp.all(stuck.draws[:, -1] < 0)


def test_the_modes_width_converges_with_the_steps():
    """A coarse grid makes modes too narrow; the method is of first order, so a quarter is left."""
    denoise = mc.reverse_diffusion(mc.ornstein_uhlenbeck(), mixture(), mc.importance(200))
    off = []
    for steps in (20, 80):
        x = np.asarray(run(denoise, steps).x[:, 0], np.float64)
        mode = x[x > 0]
        off.append(SD - mode.std())
    error = SD / np.sqrt(2 * 0.7 * 2000)
    assert off[0] > 4 * error
    assert abs(off[1]) < off[0] / 4 + 4 * error


def test_numbers_do_not_compile_anew_and_it_composes():
    ou = mc.ornstein_uhlenbeck()
    run(mc.reverse_diffusion(ou, mixture(), mc.langevin(20, 3)), 5, 16)
    before = _sample._cache_size()
    for by in (0.1, 0.2):
        moved = target.density(log_mixture, jnp.zeros(1), jnp.asarray(CENTRES + by, jnp.float32))
        run(mc.reverse_diffusion(ou, moved, mc.langevin(20, 3, step_size=by)), 5, 16)
    assert _sample._cache_size() == before

    denoise = mc.reverse_diffusion(ou, mixture(), mc.importance(50))
    x = jax.random.normal(jax.random.key(6), (16, 1))
    keys = jax.random.split(jax.random.key(7), 16)

    def many(keys, x):
        return jax.vmap(lambda key, x: denoise(x, 0.5, key))(keys, x)

    mesh = make_mesh("data=8")
    inner = jax.shard_map(many, mesh=mesh, in_specs=P("data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(inner)(keys, x), many(keys, x), rtol=1e-5, atol=1e-6)
    slope = jax.grad(lambda x: jnp.sum(denoise(x, 0.5, keys[0])))(x[0])
    assert jnp.all(jnp.isfinite(slope))
    # a sample's randomness is its key's and the time's
    assert denoise(x[0], 0.5, keys[0]) == denoise(x[0], 0.5, keys[0])
    assert denoise(x[0], 0.5, keys[0]) != denoise(x[0], 0.5, keys[1])


def test_an_estimate_without_mass_shows():
    """A target without mass near the proposals: not a number, and not a guess."""
    nowhere = target.density(lambda _, x: jnp.where(x[0] > 1e6, 0.0, -jnp.inf), jnp.zeros(1))
    ou = mc.ornstein_uhlenbeck()
    for method in (mc.importance(10), mc.langevin(10, 2)):
        denoise = mc.reverse_diffusion(ou, nowhere, method)
        _, info = denoise.estimate(jax.random.key(0), jnp.zeros(1), 0.5)
        assert not info.finite
        assert not run(denoise, 5, 4).info.finite.any()
    flat = mc.reverse_diffusion(ou, target.density(lambda _, x: 0 * x[0], jnp.zeros(1)))
    np.testing.assert_allclose(
        flat.estimate(jax.random.key(0), jnp.zeros(1), 0.5)[1].ess, 500, rtol=1e-4
    )


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: mc.importance(0), ValueError, "draws"),
        (lambda: mc.langevin(0), ValueError, "chains"),
        (lambda: mc.langevin(steps=0), ValueError, "steps"),
        (lambda: mc.langevin(step_size=0.0), ValueError, "step_size"),
        (lambda: mc.langevin(smoothness=-1.0), ValueError, "smoothness"),
        (lambda: mc.ornstein_uhlenbeck(2.0, 1.0), ValueError, "t_min"),
        (
            lambda: mc.reverse_diffusion(
                process.gaussian(process.cosine(), core.Diagonal(jnp.array([1.0, 2.0]))), mixture()
            ),
            ValueError,
            "white",
        ),
        (
            lambda: mc.reverse_diffusion(process.gaussian(process.cosine()), mixture()),
            ValueError,
            "alpha",
        ),
        (
            lambda: mc.reverse_diffusion(mc.ornstein_uhlenbeck(), mixture())(jnp.zeros(1), 0.5),
            TypeError,
            "key as its condition",
        ),
    ],
)
def test_bad_input_is_refused(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
