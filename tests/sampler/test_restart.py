"""Plans that go back to noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import ndtri

from jaxinf import core, process, sampler, score
from jaxinf.sampler.restart import restart

EDM = process.gaussian(process.edm())
PLAN = sampler.plan(EDM, [10.0, 8.0, 6.0, 4.0, 2.0, 1.0, 0.0])
FLOW = sampler.plan(EDM, np.geomspace(80, 0.05, 60))


@core.record
class Exact:
    """The probability flow of N(0, s^2) data with alpha = 1: x sqrt((s^2 + s'^2) / (s^2 + t^2))."""

    process: core.Leaf
    s: core.Leaf

    def init(self, x):
        return sampler.State(x)

    def step(self, denoise, noise, state, t, s):
        factor = jnp.sqrt((self.s**2 + s**2) / (self.s**2 + t**2))
        return sampler.State(factor * state.x), sampler.StepInfo(state.x)

    def calls(self, t, s):
        return 1


@core.record
class Perturbed:
    """A denoiser whose noise prediction is scaled by 1 - amount."""

    process: core.Leaf
    law: core.Leaf
    amount: core.Leaf

    def __call__(self, x, t, cond=None):
        clean = self.process.posterior_mean(self.law, x, t)
        return clean + self.amount * (x - clean)


def end_variance(stepper, denoiser, plan, variance):
    """The variance at a plan's end, exactly: falls scale it, rises add the process's noise."""

    def slope(t, s):
        return stepper.step(lambda x, t: denoiser(x, t), SILENT, stepper.init(jnp.ones(1)), t, s)[
            0
        ].x[0]

    times = jnp.asarray(plan.times)
    slopes = np.asarray(jax.jit(jax.vmap(slope))(times[:-1], times[1:]))
    for t, s, slope in zip(plan.times[:-1], plan.times[1:], slopes, strict=True):
        if s < t:
            variance = slope**2 * variance
        else:
            a, b = EDM.transition(t, s)
            variance = float(a) ** 2 * variance + float(b) ** 2
    return variance


SILENT = core.Independent(jax.random.key(0), 0, 0, (1,), jnp.float32)


def test_the_times():
    """Down to lo, up to hi, K times the interval again, and on."""
    again = restart(PLAN, (1.9, 6.3), 2)
    wanted = [10, 8, 6, 4, 2, 6, 4, 2, 6, 4, 2, 1, 0]
    np.testing.assert_array_equal(again.times, wanted)
    assert again.rises
    assert not PLAN.rises
    given = restart(PLAN, (2.0, 7.0), 1, sampler.plan(EDM, [7.0, 3.0, 2.0]))
    np.testing.assert_array_equal(given.times, [10, 8, 6, 4, 2, 7, 3, 2, 1, 0])
    near = restart(PLAN, (2.1, 7.0), 1, sampler.plan(EDM, [7.0, 3.0, 2.1]))
    np.testing.assert_array_equal(near.times, given.times)
    at_the_end = restart(PLAN, (0.0, 2.0), 1)
    np.testing.assert_array_equal(at_the_end.times, [*PLAN.times, 2, 1, 0])


def test_several_intervals():
    """A second interval is added to a plan that rises already, at its last passage."""
    twice = restart(restart(PLAN, (4.0, 8.0), 1), (1.0, 4.0), 1)
    np.testing.assert_array_equal(twice.times, [10, 8, 6, 4, 8, 6, 4, 2, 1, 4, 2, 1, 0])
    other = restart(restart(PLAN, (1.0, 4.0), 1), (4.0, 8.0), 1)
    np.testing.assert_array_equal(other.times, [10, 8, 6, 4, 2, 1, 4, 8, 6, 4, 2, 1, 0])


def test_no_restart_is_the_plan_and_calls_are_counted():
    """times = 0 returns the plan itself; rises call no denoiser, each fall the stepper's share."""
    assert restart(PLAN, (2.0, 6.0), 0) is PLAN
    again = restart(PLAN, (2.0, 6.0), 3)
    assert again.calls(sampler.ddim(EDM)) == 6 + 3 * 2
    assert again.calls(sampler.heun(EDM)) == 11 + 3 * 4


@pytest.mark.parametrize("times", [1, 2, 3])
def test_a_restart_contracts_the_variance(times, x64):
    """An error e of the variance becomes e ((s^2 + lo^2) / (s^2 + hi^2))^K, on the exact flow."""
    s, lo, hi, error = 1.0, 0.05, 3.0, 0.3
    plan = restart(FLOW, (lo, hi), times, sampler.plan(EDM, np.geomspace(hi, lo, 4)))
    start = s**2 + 80.0**2
    plain = end_variance(Exact(EDM, s), Perturbed, FLOW, start * (1 + error))
    again = end_variance(Exact(EDM, s), Perturbed, plan, start * (1 + error))
    wanted = s**2 + lo**2
    ratio = (s**2 + lo**2) / (s**2 + hi**2)
    np.testing.assert_allclose(ratio, 0.10025, rtol=1e-5)
    np.testing.assert_allclose((again - wanted) / (plain - wanted), ratio**times, rtol=1e-10)


def test_heun_contracts_as_the_flow_does(x64):
    """With Heun's steps the contraction is the flow's but for the second order in the steps."""
    s, lo, hi = 1.0, 0.05, 3.0
    data = core.gaussian(jnp.zeros(1), core.Diagonal(s))
    stepper, denoiser = sampler.heun(EDM), score.oracle(EDM, data)
    ratio, errors = (s**2 + lo**2) / (s**2 + hi**2), []
    for steps in (20, 40):
        plan = restart(FLOW, (lo, hi), 1, sampler.plan(EDM, np.geomspace(hi, lo, steps + 1)))
        one, two = (end_variance(stepper, denoiser, plan, v) for v in (6000.0, 7000.0))
        low, high = (end_variance(stepper, denoiser, FLOW, v) for v in (6000.0, 7000.0))
        errors.append((two - one) / (high - low) / ratio - 1)
    assert abs(errors[1]) < 0.01
    assert abs(np.log2(errors[0] / errors[1]) - 2) < 0.1


def test_the_driver_walks_it(x64, key):
    """Through the driver: two starts stay sqrt(ratio)^K apart, and each rise adds its own noise."""
    s, lo, hi, n = 1.0, 0.05, 3.0, 4096
    plan = restart(FLOW, (lo, hi), 2, sampler.plan(EDM, [hi, 1.0, lo]))
    stepper = Exact(EDM, s)
    denoiser = Perturbed(EDM, None, 0.0)
    x = jnp.concatenate([jnp.zeros((n, 1)), jnp.ones((n, 1))])
    index = jnp.tile(jnp.arange(n), 2)
    out = sampler.sample(key, stepper, denoiser, plan, x, index=index, trajectory=True)
    ratio = (s**2 + lo**2) / (s**2 + hi**2)
    wanted = np.sqrt((s**2 + lo**2) / (s**2 + 80**2)) * ratio
    np.testing.assert_allclose(out.x[n:] - out.x[:n], wanted, rtol=1e-9)
    path = np.concatenate([x[None, :n], out.info.path.x[:, :n]])[:, :, 0]
    rises = np.flatnonzero(np.diff(plan.times) > 0)
    first, second = ((path[i + 1] - path[i]) / np.sqrt(hi**2 - lo**2) for i in rises)
    for z in (first, second):
        assert abs(np.mean(z**2) - 1) < 4 * np.sqrt(2 / n)
    assert abs(np.mean(first * second)) < 4 / np.sqrt(n)


def test_restarts_mend_a_wrong_score():
    """Two modes, a noise prediction 3 % too small: nearer to the data than Heun at equal calls.

    The starts are the prior's quantiles, so all chance is the restarts'; z-score over four keys.
    """
    law = core.mixture(jnp.array([0.3, 0.7]), jnp.array([[-1.0], [1.0]]), jnp.array([0.2, 0.2]))
    quantile = (np.arange(2048) + 0.5) / 2048
    x = (80 * ndtri(jnp.asarray(quantile, jnp.float32)))[:, None]
    grid = np.linspace(-3, 3, 20001)
    density = sum(w * np.exp(-0.5 * ((grid - m) / 0.2) ** 2) for w, m in ((0.3, -1), (0.7, 1)))
    truth = np.interp(quantile, np.cumsum(density) / density.sum(), grid)
    stepper, denoiser = sampler.heun(EDM), Perturbed(EDM, law, 0.03)

    def distance(key, plan):
        end = sampler.sample(jax.random.key(key), stepper, denoiser, plan, x).x
        return np.mean(np.abs(np.sort(end[:, 0]) - truth))

    plan = restart(sampler.karras(EDM, 18), (0.1, 2.0), 2)
    plain = sampler.karras(EDM, (plan.calls(stepper) + 1) // 2)
    assert plain.calls(stepper) == plan.calls(stepper)
    distances = np.array([distance(key, plan) for key in range(4)])
    margin = distance(0, plain) - distances.mean()
    assert margin > 4 * distances.std(ddof=1) / np.sqrt(4)
    assert distances.mean() < 0.6 * distance(0, plain)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: restart(PLAN, (6.0, 2.0), 1), ValueError, "lo < hi"),
        (lambda: restart(PLAN, (2.0, 2.0), 1), ValueError, "lo < hi"),
        (lambda: restart(PLAN, (2.0, 12.0), 1), ValueError, "within the plan's times"),
        (lambda: restart(PLAN, (-1.0, 2.0), 1), ValueError, "within the plan's times"),
        (lambda: restart(PLAN, (2.0, 6.0), -1), ValueError, "at least 0"),
        (lambda: restart(PLAN, (2.1, 2.4), 1), ValueError, "no step.*np.geomspace"),
        (
            lambda: restart(PLAN, (2.0, 7.0), 1, sampler.plan(EDM, [6.0, 2.0])),
            ValueError,
            "descent must fall from hi=7",
        ),
        (
            lambda: restart(PLAN, (2.0, 7.0), 1, sampler.plan(EDM, [7.0, 3.0])),
            ValueError,
            "to lo=2",
        ),
        (
            lambda: jax.jit(lambda p: restart(p, (2.0, 6.0), 1).times)(PLAN),
            TypeError,
            "outside jit",
        ),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()
