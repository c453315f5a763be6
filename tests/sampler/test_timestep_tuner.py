"""Tuning one network time a step: against exact roots, and on synthetic losses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import brentq

from jaxinf import core, process, sampler, score
from jaxinf.sampler.dual_clock import tuned
from jaxinf.sampler.timestep_tuner import _nearest_minimum, tune
from jaxinf.sampler.tuning_objectives import match_moments, steady_noise

KEY = jax.random.key(0)
VP = process.gaussian(process.cosine(t_max=0.995))
HALF = match_moments(jnp.zeros(1), jnp.full(1, 0.25))


def narrow():
    """N(0, 0.5^2), its denoiser, five steps from 0.995 to 0.02, and a start of exact moments."""
    law = core.gaussian(jnp.zeros(1), core.Diagonal(0.5))
    plan = sampler.plan(VP, np.linspace(0.995, 0.02, 6))
    scale = VP.marginal(law, VP.t_max).covariance.scale
    return score.oracle(VP, law), plan, scale * jnp.array([[-1.0], [1.0]])


def exact_taus(plan):
    """One tau a step from the moment equation |k(tau)| std_t = std_s, by bracketed root finding.

    With e(x, tau) = sigma(tau) x / p(tau)^2, p^2 = alpha^2 / 4 + sigma^2, a DDIM step multiplies by
    k = (alpha_s / alpha_t) (1 - sigma_t sigma / p^2) + sigma_s sigma / p^2. Of several roots the
    nearest to t; where there is none, the end of the range that is nearest to one.
    """

    def scales(t):
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)

    def power(t):
        alpha, sigma = scales(t)
        return alpha**2 / 4 + sigma**2

    std, taus, roots = np.sqrt(power(plan.times[0])), [], []
    for t, s in zip(plan.times[:-1], plan.times[1:], strict=True):
        (a_t, s_t), (a_s, s_s) = scales(t), scales(s)

        def factor(tau, a_t=a_t, s_t=s_t, a_s=a_s, s_s=s_s):
            slope = scales(tau)[1] / power(tau)
            return abs(a_s / a_t * (1 - s_t * slope) + s_s * slope)

        def gap(tau, factor=factor, std=std, s=s):
            return factor(tau) * std - np.sqrt(power(s))

        grid = np.linspace(float(VP.t_min), float(VP.t_max), 4001)
        values = np.array([gap(tau) for tau in grid])
        found = [
            brentq(gap, *grid[i : i + 2], xtol=1e-15)
            for i in np.flatnonzero(np.sign(values[1:]) != np.sign(values[:-1]))
        ]
        tau = min(found, key=lambda r: abs(r - t)) if found else grid[np.argmin(np.abs(values))]
        std, taus, roots = factor(tau) * std, [*taus, tau], [*roots, len(found)]
    return np.array(taus), roots, std


def test_moments_are_matched_to_the_last_digit(x64):
    """0.3751 untuned, 0.5007 wanted and reached to 1e-12, by the nearest roots of the equation."""
    denoiser, plan, x = narrow()
    stepper = sampler.ddim(VP)
    plain = sampler.sample(KEY, stepper, denoiser, plan, x).x
    wanted = np.sqrt(np.cos(0.01 * np.pi) ** 2 / 4 + np.sin(0.01 * np.pi) ** 2)
    np.testing.assert_allclose(jnp.std(plain), 0.3751, atol=5e-5)
    np.testing.assert_allclose(wanted, 0.5007, atol=5e-5)
    exact, roots, std = exact_taus(plan)
    assert min(roots) == 1
    assert max(roots) == 3
    np.testing.assert_allclose(std, wanted, rtol=1e-12)
    taus = tune(KEY, stepper, denoiser, plan, x, HALF, refinements=72)
    np.testing.assert_allclose(taus, exact, atol=1e-12)
    out = sampler.sample(KEY, tuned(stepper, taus), denoiser, plan, x).x
    np.testing.assert_allclose(jnp.std(out), wanted, rtol=1e-12)


def test_float32():
    """Without float64 the standard deviation is met to a few ulp, in the default sections."""
    denoiser, plan, x = narrow()
    taus = tune(KEY, sampler.ddim(VP), denoiser, plan, x, HALF)
    out = sampler.sample(KEY, tuned(sampler.ddim(VP), taus), denoiser, plan, x).x
    np.testing.assert_allclose(jnp.std(out), 0.500739430, rtol=8 * np.finfo(np.float32).eps)


@pytest.mark.parametrize("make", [sampler.ancestral, sampler.heun], ids=["ancestral", "heun"])
def test_what_is_tuned_is_what_is_sampled(make, x64):
    """A stepper that draws, one that calls twice: ``sample`` meets the moment that ``tune`` met."""
    denoiser, plan, _ = narrow()
    x = VP.prior().sample(jax.random.key(3), (16, 1)).astype(float)
    stepper = make(VP)
    taus = tune(KEY, stepper, denoiser, plan, x, Deviation(), refinements=72)
    out = sampler.sample(KEY, tuned(stepper, taus), denoiser, plan, x).x
    np.testing.assert_allclose(jnp.std(out), deviation(plan.times[-1]), rtol=1e-9)
    if make is sampler.ancestral:
        other = sampler.sample(jax.random.key(1), tuned(stepper, taus), denoiser, plan, x).x
        assert abs(float(jnp.std(other) / deviation(plan.times[-1])) - 1) > 1e-3


def deviation(t):
    """The standard deviation of x_t for N(0, 0.5^2)."""
    return jnp.sqrt(VP.alpha(t) ** 2 / 4 + VP.sigma(t) ** 2)


@core.record
class Deviation:
    """A user's objective: the samples' deviation alone."""

    def loss(self, process, denoise, t, x, s, y):
        return jnp.square(jnp.std(y) - deviation(s))


def test_steady_noise_keeps_times_where_data_are_a_point(x64):
    """Exact trajectories of a point have one noise: t_i is best, and the last step keeps its own.

    On N(0, 0.5^2) the very same objective leads away: the docstring's warning.
    """
    plan, x = sampler.uniform(VP, 4), jnp.array([[-1.0], [0.3]])
    point = core.gaussian(jnp.array([0.4]), core.Diagonal(0.0))
    taus = tune(KEY, sampler.ddim(VP), score.oracle(VP, point), plan, x, steady_noise)
    np.testing.assert_allclose(taus, plan.times[:-1], rtol=1e-9)
    assert taus[-1] == plan.times[-2]
    denoiser, plan, x = narrow()
    taus = tune(KEY, sampler.ddim(VP), denoiser, plan, x, steady_noise)
    out = sampler.sample(KEY, tuned(sampler.ddim(VP), taus), denoiser, plan, x).x
    assert float(jnp.std(out)) > 0.9


def test_objectives_are_their_formulas(x64):
    """Both losses on one step of two coordinates, by hand, under coloured noise too."""
    matrix = np.array([[1.0, 0.6], [0.6, 1.5]])
    mean, variance = np.array([0.3, -1.0]), np.array([0.25, 4.0])
    y = np.random.default_rng(0).normal(size=(5, 2))
    t, s = 0.7, 0.4
    a, sigma = float(VP.alpha(s)), float(VP.sigma(s))

    def denoise(x, t):
        return 0.5 * x + t

    for covariance, diagonal in ((core.white(), [1, 1]), (core.dense(jnp.array(matrix)), [1, 1.5])):
        p = process.gaussian(process.cosine(t_max=0.995), covariance)
        wanted = (y.mean(0) - a * mean) ** 2
        wanted += (y.std(0) - np.sqrt(a**2 * variance + sigma**2 * np.array(diagonal))) ** 2
        loss = match_moments(jnp.array(mean), jnp.array(variance)).loss(
            p, denoise, t, jnp.array(y), s, jnp.array(y)
        )
        np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-12)

    x = jnp.array(y) + 1
    before = (x - VP.alpha(t) * denoise(x, t)) / VP.sigma(t)
    after = (y - a * denoise(y, s)) / sigma
    loss = steady_noise.loss(VP, denoise, t, x, s, jnp.array(y))
    np.testing.assert_allclose(loss, np.mean((after - before) ** 2), rtol=1e-12)
    for end in (VP.t_min, 0.0):
        assert steady_noise.loss(VP, denoise, t, x, end, jnp.array(y)) == 0


@pytest.mark.parametrize(
    ("loss", "own", "wanted"),
    [
        (lambda u: (u - 0.21) ** 2 * (u - 0.83) ** 2, 0.7, 0.83),  # two roots: the nearest
        (lambda u: (u - 0.21) ** 2 * (u - 0.83) ** 2, 0.3, 0.21),
        (lambda u: (u - 0.21) ** 2 * ((u - 0.83) ** 2 + 0.1), 0.7, 0.21),  # the near one is poor
        (lambda u: (u - 0.4371) ** 2, 0.4371, 0.4371),  # nothing better
        (lambda u: 0 * u + 1, 0.37, 0.37),  # no preference
        (lambda u: jnp.where(u > 0.5, jnp.nan, (u - 0.4) ** 2), 0.9, 0.9),  # not known at own
        (lambda u: jnp.where(u > 0.5, jnp.nan, (u - 0.4) ** 2), 0.3, 0.4),
        (lambda u: u, 0.6, 0.01),  # the ends of the range
        (lambda u: -u, 0.6, 1.0),
        (lambda u: (u - 0.61) ** 2 * ((u - 0.1) ** 2 + 1e-6), 0.6, 0.61),  # between candidates
    ],
)
def test_which_minimum_is_taken(loss, own, wanted, x64):
    """The nearest that saves 95 % of what the best saves; never one that is worse than own."""
    tried = jnp.linspace(1.0, 0.01, 24)
    found = jax.jit(lambda own: _nearest_minimum(loss, own, tried, 60))(jnp.asarray(own))
    np.testing.assert_allclose(found, wanted, atol=1e-7)


def test_a_mixture_by_a_multistep_method():
    """Coordinates, conditions, a stepper with memory and a table: the moments are nearer after."""
    law = core.mixture(
        jnp.array([0.3, 0.7]), jnp.array([[-1.0, 0.5], [1.0, -0.5]]), jnp.full((2, 2), 0.2)
    )
    plan, x = sampler.uniform(VP, 6, end=0.02), VP.prior().sample(jax.random.key(1), (512, 2))
    mean = jnp.array([0.4, -0.2])
    variance = 0.04 + jnp.array([0.84, 0.21])
    objective = match_moments(mean, variance)
    denoiser, stepper = Shifted(VP, law), sampler.adams_bashforth(VP, 2)
    cond = jnp.zeros((512, 2))
    taus = tune(KEY, stepper, denoiser, plan, x, objective, cond, candidates=32, refinements=24)

    def loss(stepper):
        out = sampler.sample(KEY, stepper, denoiser, plan, x, cond).x
        return float(objective.loss(VP, denoiser, plan.times[0], x, 0.02, out))

    assert taus.shape == (6,)
    assert loss(tuned(stepper, taus)) < 0.5 * loss(stepper)
    moved = tune(KEY, stepper, denoiser, plan, x, objective, cond + 0.3, candidates=32)
    assert float(jnp.abs(moved - taus).max()) > 1e-2


@core.record
class Shifted:
    """A perfect denoiser, moved by the condition."""

    process: core.Leaf
    law: core.Leaf

    def __call__(self, x, t, cond):
        return self.process.posterior_mean(self.law, x, t) + cond


def test_it_compiles_once():
    """Other numbers in plan, stepper, denoiser and objective trace nothing anew."""
    traces = []

    @core.record
    class Counting:
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return self.scale * x

    x = narrow()[2]
    for number in (0.1, 0.2):
        changed = sampler.plan(VP, np.linspace(0.8 + number / 2, 0.02, 6))
        objective = match_moments(jnp.zeros(1), jnp.full(1, number))
        tune(KEY, sampler.ddim(VP), Counting(number), changed, x, objective)
        count = len(traces) if number == 0.1 else count
    assert len(traces) == count


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"key": jnp.zeros(2, jnp.uint32)}, TypeError, r"jax\.random\.key"),
        ({"x_T": jnp.zeros((0, 1))}, ValueError, "at least one"),
        ({"cond": jnp.zeros(3)}, ValueError, "leading axis 2"),
        (
            {"plan": sampler.Plan(np.array([0.9, 0.1, 0.5, 0.0]), rises=True)},
            ValueError,
            "only fal",
        ),
        ({"candidates": 1}, ValueError, "at least 2"),
        ({"refinements": -1}, ValueError, "at least 0"),
        ({"stepper": sampler.ddim(process.gaussian(process.cosine()))}, ValueError, r"process\.v"),
    ],
)
def test_bad_input(change, error, message):
    """Each mistake is named with its mend."""
    denoiser, plan, x = narrow()
    given = {"key": KEY, "stepper": sampler.ddim(VP), "denoiser": denoiser, "plan": plan, "x_T": x}
    with pytest.raises(error, match=message):
        tune(**(given | {"objective": HALF} | change))


@pytest.mark.parametrize(
    ("mean", "variance", "message"),
    [(jnp.zeros(2), jnp.array(1.0), "one example's shape"), (jnp.zeros(2), -jnp.ones(2), "negat")],
)
def test_bad_moments(mean, variance, message):
    """Each mistake is named with its mend."""
    with pytest.raises(ValueError, match=message):
        match_moments(mean, variance)
