"""Likelihoods and operators: against dense matrices, closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from scipy import stats

from jaxinf import core, guide, process, sampler, score

PROCESS = process.gaussian(process.cosine(t_max=0.99))
LATE = process.gaussian(process.cosine(t_max=1 - 1e-4))  # whose start is the reference law
STANDARD = core.gaussian(jnp.zeros(1), core.white())


def affine(noise, x):
    return dist.Normal(jnp.array([[1.0, 0.5, -0.3], [0.2, 1.5, 0.1]], x.dtype) @ x, noise)


def wide(dim=3):
    rng = np.random.default_rng(0)
    root = rng.standard_normal((dim, dim))
    return core.gaussian(jnp.zeros(dim), core.dense(jnp.asarray(root @ root.T + np.eye(dim))))


@pytest.mark.parametrize("method", [guide.mmps, guide.pigdm, guide.tmpd, guide.point])
def test_a_normal_law_is_the_linear_likelihood(method, x64):
    matrix = jnp.array([[1.0, 0.5, -0.3], [0.2, 1.5, 0.1]])
    y, x, plain = jnp.array([0.7, -1.2]), jnp.array([0.3, -0.8, 1.1]), score.oracle(PROCESS, wide())
    one = guide.linear(guide.projection(matrix), y, 0.4)
    other = guide.observed(affine, y, 0.4)
    found, wanted = (
        guide.conditioned(plain, likelihood, method()).evaluate(x, 0.4, None, False)
        for likelihood in (other, one)
    )
    np.testing.assert_allclose(found.guided.mean, wanted.guided.mean, rtol=1e-10)
    np.testing.assert_allclose(found.log_twist, wanted.log_twist, rtol=1e-10)
    np.testing.assert_allclose(other.log_prob(x), one.log_prob(x), rtol=1e-12)
    np.testing.assert_allclose(other.residual(x), one.residual(x), rtol=1e-12)


def test_infinite_noise_is_not_observed(x64):
    """A number with infinite noise is no part of the observation, whatever its value."""
    x, plain = jnp.array([0.3, -0.8, 1.1]), score.oracle(PROCESS, wide())
    whole = guide.linear(guide.select([0, 1, 2]), jnp.array([0.2, 9.0, -0.4]),
                         jnp.array([0.3, jnp.inf, 0.5]))  # fmt: skip
    part = guide.linear(guide.select([0, 2]), jnp.array([0.2, -0.4]), jnp.array([0.3, 0.5]))
    for method in (guide.mmps(), guide.tmpd(), guide.pigdm()):
        found, wanted = (
            guide.conditioned(plain, likelihood, method).evaluate(x, 0.4, None, False)
            for likelihood in (whole, part)
        )
        np.testing.assert_allclose(found.log_twist, wanted.log_twist, rtol=1e-9)
        np.testing.assert_allclose(found.guided.mean, wanted.guided.mean, rtol=1e-9)
    np.testing.assert_allclose(whole.log_prob(x), part.log_prob(x), rtol=1e-12)


def value(params, x):
    return x


def test_an_event_of_a_gaussian_in_closed_form(x64):
    """x_0 ~ N(0, 1), x_0 > 2: the conditional score is exact."""
    d = guide.conditioned(
        score.oracle(PROCESS, STANDARD), guide.interval(value, 2.0, jnp.inf), guide.mmps()
    )
    for t in (0.05, 0.4, 0.9):
        alpha, sigma = float(PROCESS.alpha(t)), float(PROCESS.sigma(t))
        x = np.linspace(-2, 2.5, 7)
        found = jax.vmap(lambda x, t=t: d(x[None], t)[0])(jnp.asarray(x))
        power = alpha**2 + sigma**2
        mean, deviation = alpha * x / power, sigma / np.sqrt(power)
        a = (2 - mean) / deviation
        wanted = mean + deviation * np.exp(stats.norm.logpdf(a) - stats.norm.logsf(a))
        np.testing.assert_allclose(found, wanted, rtol=1e-6)


def weighted(d, function, steps=20, particles=200, runs=100):
    """Evidence and evidence times a mean: their averages over runs and the errors."""
    plan = sampler.uniform(LATE, steps)

    @jax.jit
    @jax.vmap
    def estimates(key):
        run = guide.particles(key, sampler.moment_matched(LATE), d, plan, (1,), particles=particles)
        return jnp.exp(run.log_evidence) * run.population.mean(
            lambda x: jnp.concatenate([jnp.ones(1), function(x)])
        )

    found = np.asarray(estimates(jax.random.split(jax.random.key(1), runs)))
    return found.mean(0), found.std(0, ddof=1) / np.sqrt(runs)


def test_samples_of_an_event_have_the_inverse_mills_ratio(x64):
    """E[x_0 | x_0 > 2] = 2.3732, and its probability, within 4 standard errors."""
    d = guide.conditioned(
        score.oracle(LATE, STANDARD), guide.interval(value, 2.0, jnp.inf), guide.mmps()
    )
    found, error = weighted(d, lambda x: x)
    chance, mean = stats.norm.sf(2.0), stats.norm.pdf(2.0) / stats.norm.sf(2.0)
    assert abs(mean - 2.3732) < 5e-5
    assert np.all(np.abs(found - [chance, chance * mean]) < 4 * error), (found, error)


def squared(params, x):
    return jnp.square(x)


def test_a_quadratic_event_of_a_mixture(x64):
    """The weighted histogram is quadrature's, bin by bin, of p(x_0 | 1 < x_0^2 + e < 4)."""
    law = core.mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.5], [1.0]]), jnp.array([0.5, 0.8]))
    event = guide.interval(squared, 1.0, 4.0, noise=0.2)
    d = guide.conditioned(score.oracle(LATE, law), event, guide.mmps())
    edges = jnp.array([-3.0, -1.6, -1.2, 0.0, 1.2, 1.6, 3.0])

    def bins(x):
        return jnp.asarray((x >= edges[:-1]) & (x < edges[1:]), x.dtype)

    found, error = weighted(d, bins, steps=60)
    line = jnp.linspace(-4.0, 4.0, 16001)[:, None]
    density = jnp.exp(jax.vmap(law.log_prob)(line) + jax.vmap(event.log_prob)(line))
    step = line[1, 0] - line[0, 0]
    wanted = step * jnp.concatenate([jnp.sum(density)[None], jax.vmap(bins)(line).T @ density])
    # of the chain's steps, for a prior that is no Gaussian: 0.0006 by quadrature of the chain
    slack = 0.001 * wanted[0]
    assert np.all(np.abs(found - np.asarray(wanted)) < 4 * error + slack), (found, wanted, error)


def counts(rate, x):
    return dist.Poisson(rate * jnp.exp(x))


def test_poisson_counts(x64):
    """Evidence and posterior mean of a log rate, against quadrature."""
    likelihood = guide.observed(counts, jnp.array([6]), 2.0)
    d = guide.conditioned(score.oracle(LATE, STANDARD), likelihood, guide.mmps())
    found, error = weighted(d, lambda x: x)
    line = np.linspace(-6, 6, 4001)
    density = stats.norm.pdf(line) * stats.poisson.pmf(6, 2 * np.exp(line)) * (line[1] - line[0])
    wanted = [density.sum(), density @ line]
    assert np.all(np.abs(found - wanted) < 4 * error), (found, wanted, error)


def test_bad_likelihoods_are_refused():
    with pytest.raises(ValueError, match="low < high"):
        guide.interval(value, 1.0, 1.0)
    with pytest.raises(ValueError, match="noise must not be negative"):
        guide.interval(value, 0.0, 1.0, noise=-1.0)
    with pytest.raises(ValueError, match="must be positive"):
        guide.linear(guide.select([0]), jnp.zeros(1), 0.0)


KEEP = np.array([[1, 0, 1, 1], [0, 1, 0, 0], [1, 1, 0, 1], [0, 0, 1, 0]], bool)
OPERATORS = {
    "mask": lambda: guide.mask(KEEP),
    "select": lambda: guide.select([3, 0, 7, 3]),
    "blur": lambda: guide.blur(jnp.arange(15.0).reshape(3, 5) - 4),
    "downsample": lambda: guide.downsample(2),
    "projection": lambda: guide.projection(jnp.arange(48.0).reshape(3, 16) - 20),
    "fourier": lambda: guide.fourier(KEEP),
}


def dense(name):
    """The matrix of each operator by another route, [m, 16]."""
    eye = np.eye(16).reshape(16, 4, 4)
    if name == "mask":
        rows = eye[:, KEEP]
    elif name == "select":
        rows = eye.reshape(16, 16)[:, [3, 0, 7, 3]]
    elif name == "blur":
        from scipy.signal import convolve2d

        kernel = np.arange(15.0).reshape(3, 5) - 4
        rows = np.stack([convolve2d(image, kernel, mode="same") for image in eye])
    elif name == "downsample":
        rows = np.stack([np.kron(np.eye(2), np.full((1, 2), 0.5)) @ image @ np.kron(
            np.eye(2), np.full((1, 2), 0.5)).T for image in eye])  # fmt: skip
    elif name == "projection":
        return np.arange(48.0).reshape(3, 16) - 20
    else:
        wave = np.exp(-2j * np.pi * np.outer(np.arange(4), np.arange(4)) / 4) / 2
        values = np.stack([(wave @ image @ wave.T)[KEEP] for image in eye])
        rows = np.concatenate([values.real, values.imag], axis=1)
    return rows.reshape(16, -1).T


@pytest.mark.parametrize("name", OPERATORS)
def test_an_operator_is_its_matrix(name, x64):
    a, matrix = OPERATORS[name](), dense(name)
    x = jax.random.normal(jax.random.key(0), (4, 4))
    seen = a(x)
    np.testing.assert_allclose(seen.reshape(-1), matrix @ x.reshape(-1), atol=1e-12)
    y = jax.random.normal(jax.random.key(1), seen.shape)
    back = a.adjoint(y, x)
    np.testing.assert_allclose(back.reshape(-1), matrix.T @ y.reshape(-1), atol=1e-12)


def test_channels_are_seen_alike(x64):
    x = jax.random.normal(jax.random.key(0), (4, 4, 2))
    for name in ("blur", "downsample", "fourier"):
        a = OPERATORS[name]()
        each = jnp.stack([a(x[..., 0]), a(x[..., 1])], axis=-1)
        np.testing.assert_allclose(a(x), each, atol=1e-12)


def doubled(params, x):
    return params * x[:2]


def test_operators_are_checked():
    guide.operator(doubled, jnp.asarray(2.0), (3,))
    with pytest.raises(ValueError, match="not linear"):
        guide.operator(lambda p, x: x**2, (), (3,))
    with pytest.raises(ValueError, match="not linear"):
        guide.operator(lambda p, x: x + 1, (), (3,))
    with pytest.raises(ValueError, match="not the operator's adjoint"):
        guide.operator(doubled, jnp.asarray(2.0), (3,), transpose=lambda p, y: jnp.pad(y, (0, 1)))
    with pytest.raises(ValueError, match="example's shape"):
        guide.operator(doubled, jnp.asarray(2.0), (3,), transpose=lambda p, y: p * y)
    with pytest.raises(ValueError, match="two odd sides"):
        guide.blur(jnp.ones((2, 3)))
    with pytest.raises(ValueError, match="factor must be at least 1"):
        guide.downsample(0)
    with pytest.raises(ValueError, match="no multiple of factor"):
        guide.downsample(3)(jnp.ones((4, 4)))


def test_weights_that_are_all_lost_are_reported(key):
    """An event that no particle meets: the evidence is 0, and the run says from when on."""
    d = guide.conditioned(
        score.oracle(PROCESS, STANDARD), guide.interval(value, 50.0, 51.0), guide.point(), scale=0.0
    )
    plan = sampler.uniform(PROCESS, 5)
    run = guide.particles(key, sampler.moment_matched(PROCESS), d, plan, (1,), particles=20)
    assert float(run.log_evidence) == -np.inf
    assert not bool(run.info.alive[-1])


def test_a_scale_that_blows_up_is_reported(key):
    """The driver says when each sample ceased to be finite, and keeps its last finite state."""
    likelihood = guide.linear(guide.select([0]), jnp.array([1.0]), 0.01)
    d = guide.conditioned(score.oracle(PROCESS, STANDARD), likelihood, guide.point(), scale=1e4)
    x = PROCESS.prior().sample(key, (4, 1))
    found = sampler.sample(key, sampler.ancestral(PROCESS), d, sampler.uniform(PROCESS, 40), x)
    assert not bool(jnp.any(found.info.finite))
    assert bool(jnp.all(found.info.failed_at < 40))
    assert bool(jnp.all(jnp.isfinite(found.x)))


@pytest.mark.parametrize("t", [0.05, 0.5, 0.9])
def test_methods_on_one_number_by_hand(t, x64):
    """N(0, s^2), y = x_0 + noise: D + (sigma^2 / alpha) d / dx log p(y | x_t), written out."""
    s, noise, y, x = 1.7, 0.5, 0.8, jnp.array([0.6])
    alpha, variance = float(PROCESS.alpha(t)), float(PROCESS.sigma(t)) ** 2
    gain = alpha * s**2 / (alpha**2 * s**2 + variance)
    clean, spread = gain * 0.6, gain * variance / alpha
    plain = score.oracle(PROCESS, core.gaussian(jnp.zeros(1), core.Diagonal(s)))
    likelihood = guide.linear(guide.select([0]), jnp.array([y]), noise)
    unit = variance / (alpha**2 + variance)  # pseudoinverse guidance's for data of unit scale
    wide = variance / alpha**2
    for method, wanted in (
        (guide.mmps(), clean + spread * (y - clean) / (noise**2 + spread)),
        (guide.mmps(1), clean + spread * (y - clean) / (noise**2 + spread)),
        (guide.tmpd(), clean + spread * (y - clean) / (noise**2 + spread)),
        (guide.pigdm(s), clean + spread * (y - clean) / (noise**2 + spread)),
        (guide.pigdm(), clean + spread * (y - clean) / (noise**2 + unit)),
        (guide.point(), clean + spread * (y - clean) / noise**2),
        (guide.convolved(), clean + wide * (y - 0.6 / alpha) / (noise**2 + wide)),
    ):
        found = guide.conditioned(plain, likelihood, method)(x, t)
        np.testing.assert_allclose(found[0], wanted, rtol=1e-10)


def reversed_moments(d, p, steps):
    """Mean and deviation at the end of the reverse equation by Euler, whose steps are affine."""
    times = jnp.asarray(sampler.karras(p, steps, end=p.t_min).times)
    stepper = sampler.euler_maruyama(p)

    def step(moments, pair):
        mean, variance = moments
        at = [stepper.proposal(d, sampler.State(jnp.array([x])), *pair) for x in (0.0, 1.0)]
        slope = (at[1].mean - at[0].mean)[0]
        fresh = at[0].covariance.dense(1)[0, 0]
        return (slope * mean + at[0].mean[0], slope**2 * variance + fresh), None

    start = (jnp.zeros(()), jnp.square(p.sigma(times[0])))
    (mean, variance), _ = jax.lax.scan(step, start, (times[:-1], times[1:]))
    return np.array([float(mean), float(jnp.sqrt(variance))])


def test_the_convolved_likelihood_is_too_sharp_and_moment_matching_is_not(x64):
    """N(0, 1), noise 0.5, y = 1: mean 0.717 and deviation 0.381, where 0.800 and 0.447 are right.

    With u = sigma^2, a = 1 / 4 and F = (1 + u) (a + u) the reverse equation's mean at u = 0 is
    F(0) times the integral of 1 / (F (a + u)), its variance F(0)^2 times that of 1 / F^2. Euler's
    steps are of first order: the figures are extrapolated, to what that and t_min leave.
    """
    p = process.gaussian(process.edm(0.01, 50.0))
    likelihood = guide.linear(guide.select([0]), jnp.ones(1), 0.5)
    plain = score.oracle(p, STANDARD)
    exact = np.array([0.8, np.sqrt(0.2)])
    mean = 0.25 * (16 / 3 - 16 / 9 * np.log(4))
    variance = 0.0625 * 16 / 9 * (5 - 8 / 3 * np.log(4))
    biased = np.array([mean, np.sqrt(variance)])
    for method, wanted in ((guide.mmps(), exact), (guide.convolved(), biased)):
        d = guide.conditioned(plain, likelihood, method)
        coarse, fine = (reversed_moments(d, p, steps) for steps in (300, 600))
        assert np.all(np.abs(2 * fine - coarse - wanted) < 2e-3), (coarse, fine)
    wide = score.oracle(p, core.gaussian(jnp.zeros(1), core.Diagonal(10.0)))
    sharp = guide.linear(guide.select([0]), jnp.ones(1), 0.1)
    d = guide.conditioned(wide, sharp, guide.convolved())
    coarse, fine = (reversed_moments(d, p, steps) for steps in (300, 600))
    # the posterior's to within the ratio of variances, and the noise that is left at t_min
    assert np.all(np.abs(2 * fine - coarse - [0.9999, 0.1]) < 2e-3), (coarse, fine)
