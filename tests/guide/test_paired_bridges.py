"""Bridges of Gaussian pairs by exact propagation, the posterior's step, and the loss's minimum."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, process, sampler

SLOPE, SHIFT, SPREAD = 0.6, -0.3, 0.5  # x_0 given x_T is N(SLOPE x_T + SHIFT, SPREAD^2)
END = 1.7


def ramp(t):
    """The root of the integral of a rate that rises to the middle and falls again, as I2SB's."""
    return jnp.sqrt(t**2 * (3 - 2 * t))


def one(t):
    return jnp.ones_like(jnp.asarray(t))


SCHEDULES = {
    "variance_preserving": lambda: process.linear_beta(0.1, 4.0),
    "variance_exploding": lambda: process.edm(0.002, 2.0),
    "i2sb": lambda: process.custom(one, ramp),
}


class Given(NamedTuple):
    """Noise that is what the test says."""

    z: jax.Array

    def increment(self, t, s):
        return self.z


@core.record
class Exact:
    """E[x_0 | x_t, x_T] of the Gaussian pairs."""

    process: core.Leaf

    def __call__(self, x, t, cond):
        a, b, c = process.pinned(self.process).coefficients(t)
        mean = SLOPE * cond + SHIFT
        gain = core.divide(a * SPREAD**2, a**2 * SPREAD**2 + c**2)
        return mean + gain * (x - b * cond - a * mean)


@jax.jit
def law_after(stepper, denoiser, times):
    """Mean and variance of the end, exactly: every step is affine in x and in its draw."""
    end = jnp.full(1, END)

    def step(law, slot):
        def move(x, z):
            state = stepper.init(end)._replace(x=x)
            return stepper.step(lambda x, t: denoiser(x, t, end), Given(z), state, *slot)[0].x

        zero = jnp.zeros(1)
        slope, spread = jax.jacfwd(move, (0, 1))(zero, zero)
        mean, variance = law
        moved = slope[0, 0] * mean + move(zero, zero)[0]
        return (moved, slope[0, 0] ** 2 * variance + spread[0, 0] ** 2), None

    return jax.lax.scan(step, (end[0], jnp.zeros_like(end[0])), (times[:-1], times[1:]))[0]


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("until", [0.0, 0.4])
def test_the_law_given_x_T_is_exact_to_order_one(schedule, eta, until, x64):
    """Mean and variance of q(x_t | x_T), at t = 0 and on the way: halved by twice the steps."""
    p = process.gaussian(SCHEDULES[schedule]())
    stepper, denoiser = guide.paired_bridge(p, jnp.asarray(eta)), Exact(p)
    a, b, c = process.pinned(p).coefficients(until * p.t_max)
    exact = a * (SLOPE * END + SHIFT) + b * END, a**2 * SPREAD**2 + c**2

    def error(steps):
        times = p.t_max * (until + (1 - until) * jnp.linspace(1.0, 0.0, steps + 1))
        got = law_after(stepper, denoiser, times)
        return np.array([float(g - e) for g, e in zip(got, exact, strict=True)])

    coarse, fine = error(160), error(320)
    assert np.abs(coarse).max() < 0.03
    assert np.abs(2 * fine - coarse).max() < 0.1 * np.abs(coarse).max() + 1e-12


def test_at_eta_one_it_is_the_ancestral_sampler(x64):
    """q(x_s | x_0, x_t) does not know x_T: I2SB's sampler is DDPM's."""
    p = process.gaussian(process.linear_beta(0.1, 4.0), core.Diagonal(jnp.array([1.0, 0.5])))
    x, end, z = jnp.array([0.3, -0.4]), jnp.array([1.0, 2.0]), jnp.array([0.7, -1.2])
    t, s = jnp.asarray(0.6), jnp.asarray(0.35)

    def denoise(x, t):
        return jnp.sin(x) + t

    stepper = guide.paired_bridge(p)
    got, info = stepper.step(denoise, Given(z), stepper.init(end)._replace(x=x), t, s)
    wanted, _ = sampler.ancestral(p).step(denoise, Given(z), sampler.State(x), t, s)
    np.testing.assert_allclose(got.x, wanted.x, rtol=1e-12)
    np.testing.assert_allclose(info.clean, denoise(x, t))
    assert stepper.calls(0.6, 0.3) == 1


WIDE = process.gaussian(process.edm(0.01, 2.0))


def network(params, x, level, end):
    """E[x_0 | x_t, x_T] from what a network is given; alpha is 1."""
    sigma = jnp.exp(4 * level)
    return params * Exact(WIDE)(x * jnp.sqrt(1 + sigma**2), sigma, end)


def noise_network(params, x, level, end):
    """E[e | x_t, x_T]."""
    sigma = jnp.exp(4 * level)
    noisy = x * jnp.sqrt(1 + sigma**2)
    return params * (noisy - network(1.0, x, level, end)) / sigma


@pytest.mark.parametrize("target", [process.x0, process.eps], ids=["x0", "eps"])
@pytest.mark.parametrize("weight", [None, process.x0])
def test_the_loss_at_the_exact_network_is_the_posterior_s_variance(target, weight, key):
    """Of each example at its time; |z| < 4. A network that is off by a factor has more."""
    end = jax.random.normal(jax.random.key(1), (20_000, 1))
    x = SLOPE * end + SHIFT + SPREAD * jax.random.normal(jax.random.key(2), end.shape)
    apply = network if target is process.x0 else noise_network
    loss = guide.paired_denoising(WIDE, apply, target=target, weight=weight)
    value, info = jax.jit(loss)(1.0, key, guide.Pairs(x, end))
    a, _, c = (np.asarray(v) for v in jax.vmap(process.pinned(WIDE).coefficients)(info.t))
    variance = SPREAD**2 * c**2 / (a**2 * SPREAD**2 + c**2)
    if target is process.eps and weight is None:
        variance /= np.asarray(info.t) ** 2
    ratio = np.asarray(info.loss) / variance  # chi squared with one degree of freedom
    inside = info.t < 1.95  # where the variance is not lost in float32
    assert abs(ratio[inside].mean() - 1) < 4 * np.sqrt(2 / inside.sum())
    np.testing.assert_allclose(value, info.loss.mean(), rtol=1e-5)
    assert jax.jit(loss)(1.1, key, (x, end))[0] > value


def nothing(params, x, level, end):
    return 0 * x


def test_what_is_regressed_on_leads_from_x_0(key):
    """(x_t - x_0) / sigma, with x_T so far away that x_t is b x_T: to the share of the noise."""
    loss = guide.paired_denoising(WIDE, nothing, target=process.eps)
    x, far = jnp.zeros((500, 3)), 1e4
    _, info = jax.jit(loss)(0.0, key, (x, jnp.full(x.shape, far)))
    _, b, c = (np.asarray(v) for v in jax.vmap(process.pinned(WIDE).coefficients)(info.t))
    share = c / (b * far)
    kept = share < 1e-3
    assert kept.mean() > 0.75
    ratio = np.sqrt(np.asarray(info.loss)) * np.asarray(info.t) / (b * far)
    assert np.all(np.abs(ratio - 1)[kept] < 5 * share[kept] + 1e-5)


def test_it_runs_in_the_driver_and_compiles_once(key):
    """From x_T to x_0: mean and variance of the samples are those of the steps, |z| < 4."""
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(1)
    def draw(keys, stepper, denoiser, x_T):
        def run(key):
            return sampler.sample(key, stepper, denoiser, plan, x_T, cond=x_T).x

        return jax.vmap(run)(keys)

    plan = sampler.uniform(WIDE, 40)

    for eta in (0.5, 1.0):
        stepper = guide.paired_bridge(WIDE, jnp.asarray(eta))
        x = draw(jax.random.split(key), stepper, Exact(WIDE), jnp.full((2000, 1), END))
    assert x.shape == (2, 2000, 1)
    x = np.asarray(x).ravel()
    mean, variance = law_after(stepper, Exact(WIDE), jnp.asarray(plan.times, jnp.float32))
    assert abs(x.mean() - mean) < 4 * np.sqrt(variance / x.size)
    assert abs(x.var() / variance - 1) < 4 * np.sqrt(2 / x.size)


def test_bad_input(key):
    with pytest.raises(ValueError, match="eta must not be negative"):
        guide.paired_bridge(WIDE, -0.5)
    with pytest.raises(ValueError, match="needs alpha"):
        guide.paired_bridge(process.gaussian(process.cosine()))
    loss = guide.paired_denoising(WIDE, network, target=process.x0)
    with pytest.raises(ValueError, match="pairs are two batches of one shape"):
        loss(1.0, key, (jnp.ones((3, 1)), jnp.ones((2, 1))))
