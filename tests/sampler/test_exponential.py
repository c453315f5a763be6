"""The exponential integrators: what they are exact on, what they reduce to, what they refuse."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, process, sampler, score

VP, VE = process.gaussian(process.cosine(t_max=0.99)), process.gaussian(process.edm())
EPSILON = np.finfo(np.float64).eps


def walk(stepper, times, denoiser, x, key=0, **options):
    plan = sampler.plan(stepper.process, times)
    return sampler.sample(jax.random.key(key), stepper, denoiser, plan, x, **options).x


@pytest.mark.parametrize("p", [VP, VE], ids=["vp", "ve"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_one_step_is_exact_on_gaussian_data_of_the_data_scale(p, order, x64):
    """The preconditioned output is constant there, so any step, however large, is the flow."""
    d = 0.6
    denoiser = score.oracle(p, core.gaussian(jnp.zeros(3), core.Diagonal(d)))
    x, times = jnp.array([[0.3, -1.0, 2.0]]), float(p.t_max) * np.array([0.9, 0.2, 0.1, 0.05])
    stepper = sampler.exponential(p, order, predicts=process.preconditioned(d))

    def scale(t):
        return jnp.hypot(p.alpha(t) * d, p.sigma(t))

    wanted = x * scale(times[-1]) / scale(times[0])
    np.testing.assert_allclose(walk(stepper, times, denoiser, x), wanted, rtol=200 * EPSILON)


@pytest.mark.parametrize("p", [VP, VE], ids=["vp", "ve"])
def test_the_stochastic_form_is_exact_on_gaussian_data_of_the_data_scale(p, x64):
    """Any one step from the marginal at t gives the marginal's variance at s, for any noise."""
    d, t, s = 0.6, 0.9 * float(p.t_max), 0.1 * float(p.t_max)
    denoiser = score.oracle(p, core.gaussian(jnp.zeros(1), core.Diagonal(d)))

    def variance(t):
        return jnp.square(p.alpha(t) * d) + jnp.square(p.sigma(t))

    for eta in (0.5, 1.0, 1.7):
        stepper = sampler.exponential(p, 2, predicts=process.preconditioned(d), eta=eta)
        row = jax.tree.map(lambda a: a[0], stepper.table(jnp.array([t, s])))
        law = stepper.proposal(denoiser, stepper.init(jnp.ones(1)), t, s, row)
        spread = law.covariance.sqrt(jnp.ones(1))
        assert spread[0] > 0.05 * jnp.sqrt(variance(s))
        got = law.mean**2 * variance(t) + spread**2
        np.testing.assert_allclose(got, variance(s), rtol=200 * EPSILON)


def mixture(p):
    law = core.mixture(jnp.array([0.4, 0.6]), jnp.array([[-1.0], [0.8]]), jnp.array([0.3, 0.4]))
    return score.oracle(p, law)


@pytest.mark.parametrize("p", [VP, VE], ids=["vp", "ve"])
def test_order_one_is_ddim_whatever_the_prediction(p, x64):
    """Of x0 and of eps alike; a last step to the data is the denoiser's in all."""
    times = float(p.t_max) * np.array([1.0, 0.5, 0.2, 0.05, 0.0])
    x, denoiser = jnp.array([[0.3], [-2.0]]), mixture(p)
    wanted = walk(sampler.ddim(p), times, denoiser, x)
    for stepper in (
        sampler.dpm_solver(p, 1),
        sampler.deis(p, 1),
        sampler.dpm_solver_single(p, 1),
        sampler.single_step(p, 1, predicts=process.eps),
    ):
        np.testing.assert_allclose(walk(stepper, times, denoiser, x), wanted, rtol=1e-12)


def test_order_one_with_full_noise_is_the_ancestral_step(x64):
    """Data prediction held constant, with eta = 1, is the posterior q(x_s | x_t, x_0)."""
    times = np.array([0.99, 0.6, 0.3, 0.05])
    x, denoiser = jnp.array([[0.3], [-2.0]]), mixture(VP)
    one = walk(sampler.dpm_solver(VP, 1, eta=1.0), times, denoiser, x)
    two = walk(sampler.ancestral(VP), times, denoiser, x)
    np.testing.assert_allclose(one, two, rtol=1e-12)


def test_the_second_order_step_is_the_papers(x64):
    """Algorithm 2 of DPM-Solver++: D = (1 + 1 / (2 r)) D_t - D_before / (2 r), r = h_before / h."""
    times, x = np.array([0.9, 0.6, 0.4]), jnp.array([[0.3]])
    denoiser = mixture(VP)
    lam = [float(VP.log_snr(t)) / 2 for t in times]
    h, r = lam[2] - lam[1], (lam[1] - lam[0]) / (lam[2] - lam[1])
    middle = walk(sampler.ddim(VP), times[:2], denoiser, x)[0]
    before, now = denoiser(x[0], times[0]), denoiser(middle, times[1])
    both = (1 + 1 / (2 * r)) * now - before / (2 * r)
    wanted = VP.sigma(times[2]) / VP.sigma(times[1]) * middle
    wanted -= VP.alpha(times[2]) * np.expm1(-h) * both
    np.testing.assert_allclose(
        walk(sampler.dpm_solver(VP), times, denoiser, x)[0], wanted, rtol=1e-12
    )


def test_the_second_order_single_step_is_the_papers(x64):
    """Algorithm 1 of DPM-Solver++ with r = 1 / 2: D is the one in the middle of the log-SNR."""
    t, s, x = 0.6, 0.4, jnp.array([[0.3]])
    denoiser = mixture(VP)
    lam_t, lam_s = (float(VP.log_snr(a)) / 2 for a in (t, s))
    middle = process.time_of(VP, jnp.asarray(lam_t + lam_s))
    u = walk(sampler.ddim(VP), [t, float(middle)], denoiser, x)[0]
    wanted = VP.sigma(s) / VP.sigma(t) * x[0]
    wanted -= VP.alpha(s) * np.expm1(lam_t - lam_s) * denoiser(u, middle)
    got = walk(sampler.dpm_solver_single(VP), [t, s], denoiser, x)[0]
    np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_the_third_order_step_integrates_the_parabola(x64):
    """Where the clean example is a parabola in lam, the third order has no error."""
    times, x = np.array([0.9, 0.7, 0.5, 0.4]), jnp.array([[0.3]])

    @jax.tree_util.Partial
    def clean(x, t, cond=None):
        lam = VP.log_snr(t) / 2
        return 1.5 - 0.7 * lam + 0.2 * lam**2 + 0 * x

    nodes, shares = np.polynomial.legendre.leggauss(40)
    lam = [float(VP.log_snr(t)) / 2 for t in times[2:]]
    at = lam[0] + (lam[1] - lam[0]) * (1 + nodes) / 2
    inner = np.exp(at - lam[1]) * (1.5 - 0.7 * at + 0.2 * at**2)
    middle = walk(sampler.dpm_solver(VP, 3), times[:3], clean, x)
    wanted = VP.sigma(times[3]) / VP.sigma(times[2]) * middle
    wanted += VP.alpha(times[3]) * (shares * inner).sum() * (lam[1] - lam[0]) / 2
    got = walk(sampler.dpm_solver(VP, 3), times, clean, x)
    np.testing.assert_allclose(got, wanted, rtol=1e-11)


def test_an_order_above_the_plans_length_uses_what_there_is(x64):
    """One step of any order is DDIM's; two of order 9 are two of order 2."""
    denoiser, x = mixture(VP), jnp.array([[0.3]])
    for times, order in (([0.9, 0.5], 1), ([0.9, 0.5, 0.4], 2)):
        got = walk(sampler.exponential(VP, 9), times, denoiser, x)
        wanted = walk(sampler.exponential(VP, order), times, denoiser, x)
        np.testing.assert_allclose(got, wanted, rtol=1e-12)


def test_history_does_not_cross_a_restart(x64):
    """After a rise the method begins anew: the steps are those of a fresh walk."""
    p, denoiser, x = VE, mixture(VE), jnp.array([[30.0]])
    down, again = [80.0, 20.0, 5.0], [60.0, 10.0, 2.0]
    plan = sampler.Plan(np.array(down + again), rises=True)
    for stepper in (sampler.dpm_solver(p, 3), sampler.unipc(p, 2)):
        out = sampler.sample(jax.random.key(0), stepper, denoiser, plan, x, trajectory=True)
        fresh = walk(stepper, again, denoiser, out.info.path.x[2])
        np.testing.assert_allclose(out.x, fresh, rtol=1e-12)


def test_tables_in_the_graph_are_those_of_the_host(x64):
    """A traced plan gives the numbers of a concrete one, and other numbers compile nothing."""
    denoiser, x, key = mixture(VP), jnp.array([[0.3]]), jax.random.key(0)
    times = np.linspace(0.99, 0.0, 8)

    @jax.jit
    @chex.assert_max_traces(1)
    def traced(times, eta):
        stepper = sampler.exponential(VP, 3, eta=eta)
        return sampler.sample(key, stepper, denoiser, sampler.Plan(times), x).x

    for eta in (0.0, 0.6):
        wanted = walk(sampler.exponential(VP, 3, eta=eta), times, denoiser, x)
        np.testing.assert_allclose(traced(times, eta), wanted, rtol=1e-11)
    single = jax.jit(lambda times: sampler.sample(
        key, sampler.single_step(VP), denoiser, sampler.Plan(times), x
    ).x)  # fmt: skip
    wanted = walk(sampler.single_step(VP), times, denoiser, x)
    np.testing.assert_allclose(single(times), wanted, rtol=1e-11)


def test_float32_loses_nothing_over_small_steps(key):
    """1,000 steps of float32 agree with float64 to rounding, since tables are made in float64."""
    stepper, denoiser = sampler.unipc(VP), mixture(VP)
    x, times = np.array([[0.3], [-1.0]]), np.linspace(0.99, 0.001, 1001)
    single = walk(stepper, times, denoiser, jnp.asarray(x, jnp.float32))
    with jax.enable_x64(True):
        double = walk(stepper, times, denoiser, jnp.asarray(x))
    np.testing.assert_allclose(single, double, atol=1000**0.5 * 1e-7 * 4)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: sampler.exponential(VP, 0), ValueError, "at least 1"),
        (lambda: sampler.exponential(VP, 2, eta=-1.0), ValueError, "must not be negative"),
        (lambda: sampler.exponential(VP, 2, pair="B3"), ValueError, "B1"),
        (lambda: sampler.exponential(VP, 2, predicts=process.score), TypeError, "preconditioned"),
        (
            lambda: sampler.exponential(VP, 2, predicts=process.eps, eta=1.0),
            ValueError,
            "explodes at few steps",
        ),
        (
            lambda: sampler.deis(process.gaussian(process.cosine())),
            ValueError,
            "process.v, process.x0",
        ),
        (lambda: sampler.dpm_solver(VP, 4), ValueError, "sampler.exponential takes any"),
        (lambda: sampler.single_step(VP, 4), ValueError, "one call a step"),
    ],
)
def test_what_does_not_exist_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_eps_with_noise_explodes_at_the_second_order_and_is_therefore_refused(x64):
    """What the refusal spares: total variance at 10 steps with eps against x0, at eta = 1."""
    p, denoiser = VE, score.oracle(VE, core.gaussian(jnp.zeros(1), core.Diagonal(1.0)))
    plan = sampler.karras(p, 10, end=p.t_min)
    x = 80 * jax.random.normal(jax.random.key(1), (4000, 1))
    good = sampler.exponential(p, 2, predicts=process.preconditioned(1.0), eta=1.0)
    bad = dataclasses.replace(good, kind=dataclasses.replace(good.kind, c=0.0, q=1.0))
    spread = [
        float(jnp.std(sampler.sample(jax.random.key(0), stepper, denoiser, plan, x).x))
        for stepper in (good, bad)
    ]
    assert abs(spread[0] - 1) < 4 / np.sqrt(2 * 4000)
    assert spread[1] ** 2 > 2
