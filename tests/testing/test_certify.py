"""The certificate: right samplers pass, each known fault is caught by the law that names it."""

import dataclasses

import faulty
import jax
import jax.numpy as jnp
import matplotlib.figure
import numpy as np
import pytest

from jaxinf import process, sampler, testing
from jaxinf.testing import exact
from jaxinf.testing.certificate import measure
from jaxinf.testing.claims import kolmogorov, z_bound


def exploding():
    return (process.gaussian(process.edm()),)


def preserving():
    return (process.gaussian(process.cosine(t_max=0.995)),)


def posterior(p, t, s):
    """Standard deviation of q(x_s | x_t, x_0)."""
    (alpha_t, sigma_t), (alpha_s, sigma_s) = testing.levels(p, t), testing.levels(p, s)
    return sigma_s / sigma_t * np.sqrt(sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2)


def karras(p, steps):
    return sampler.karras(p, steps, end=p.t_min)


def flat(p, steps):
    return np.linspace(float(p.t_max), float(p.t_min), steps + 1)


def edm_times(p, steps):
    return np.asarray(karras(p, steps).times)


def narrow():
    """A range in which equal steps come near enough to show their order."""
    return (process.gaussian(process.edm(0.5, 5.0)),)


STOCHASTIC = testing.Claims(deterministic=False, weak_order=1)
# right version, wrong version, claims, the process, the law that must catch it
FAULTS = {
    "third order without its factor 2": (
        faulty.multistep(3),
        faulty.multistep(3, factor=1.0),
        testing.Claims(order=3),
        exploding,
        "order, EDM",
    ),
    "sigma_t and sigma_s swapped": (
        faulty.exponential(),
        faulty.exponential(swapped=True),
        testing.Claims(order=1),
        exploding,
        "order, EDM",
    ),
    "alpha of the step's start": (
        faulty.ddim(),
        faulty.ddim(stale_alpha=True),
        testing.Claims(order=1),
        preserving,
        "order, Cosine",
    ),
    "guidance normalised over the batch": (
        faulty.ddim(guided=(1,)),
        faulty.ddim(guided=(0, 1)),
        testing.Claims(),
        exploding,
        "batch: alone",
    ),
    "uniform where Karras was claimed": (
        faulty.ddim(grid=edm_times),
        faulty.ddim(grid=flat),
        testing.Claims(order=1, grid=karras),
        narrow,
        "grid, EDM",
    ),
    "churn of the wrong sign": (
        faulty.churn(),
        faulty.churn(sign=-1),
        testing.Claims(deterministic=False, weak_order=2),
        exploding,
        "short runs, EDM",
    ),
    "noise used twice": (
        faulty.ancestral(),
        faulty.ancestral(reuse=2),
        STOCHASTIC,
        preserving,
        "noise of the steps, Cosine",
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_caught_and_the_right_sampler_passes(fault):
    right, wrong, claims, where, law = FAULTS[fault]
    claims = dataclasses.replace(claims, processes=where())
    report = testing.certify(right, claims)
    report.raise_if_failed()
    assert any(row.law == law and row.verdict for row in report.rows)
    assert law in failing(wrong, claims, law)


@pytest.mark.parametrize(
    ("wrong", "claims", "law"),
    [
        (faulty.ancestral(reuse=2), STOCHASTIC, "short runs, EDM"),
        (faulty.ancestral(shared=0), STOCHASTIC, "noise of samples, coordinates, EDM"),
        (faulty.ancestral(shared=1), STOCHASTIC, "noise of samples, coordinates, EDM"),
        (
            faulty.churn(sign=-1, local=False),
            dataclasses.replace(STOCHASTIC, weak_order=2, local=False),
            "Gaussian, EDM",
        ),
        (faulty.ancestral(), testing.Claims(), "noise"),
        (faulty.ddim(grid=edm_times), testing.Claims(), "grid matters, EDM"),
        (faulty.ddim(guided=(0, 1)), testing.Claims(), "batch: others changed"),
        (faulty.ddim(), testing.Claims(calls=lambda t: len(t)), "calls, EDM"),
        (faulty.ddim(), testing.Claims(order=2), "order, EDM"),
        (faulty.ancestral(), dataclasses.replace(STOCHASTIC, weak_order=2), "Gaussian, EDM"),
    ],
)
def test_more_faults(wrong, claims, law):
    claims = dataclasses.replace(claims, processes=exploding())
    assert law in failing(wrong, claims, law)


def scaled(build, factor, first=False):
    """A sampler that takes the prediction times a factor, in all steps or in the first."""

    def wrong(process, times):
        run = build(process, times)

        def scaled_run(denoise, x, seed):
            def call(x, t):
                return denoise(x, t) * (1.0 if first and t != times[0] else factor)

            return run(call, x, seed)

        return scaled_run

    return wrong


@pytest.mark.parametrize(
    ("wrong", "claims", "law"),
    [
        (
            scaled(faulty.multistep(2), 1.02, first=True),
            testing.Claims(order=2),
            "one step, EDM",
        ),
        (scaled(faulty.ancestral(), 1.0001), STOCHASTIC, "mean, EDM"),
    ],
)
def test_a_fault_that_only_this_law_sees(wrong, claims, law):
    """A first step, and a drift so little off that the chains' noise hides it."""
    claims = dataclasses.replace(claims, processes=exploding())
    assert failing(wrong, claims, law) == [law]


def failing(build, claims, until):
    """The laws that fail, up to one of them."""
    found = []
    for row in measure(build, claims):
        if isinstance(row, testing.Row) and row.verdict is False:
            found.append(row.law)
        if isinstance(row, testing.Row) and row.law == until:
            break
    return found


def test_a_foreign_sampler_takes_an_adapter():
    """k-diffusion's signature, in five lines; its last step to sigma = 0 is the denoiser."""

    def build(process, times):
        _, sigmas = testing.levels(process, times)

        def run(denoise, x, seed):
            return faulty.sample_heun(denoise, x, sigmas)

        return run

    claims = testing.Claims(order=2, processes=exploding(), calls=lambda times: 2 * len(times) - 2)
    testing.certify(build, claims).raise_if_failed()

    def to_zero(process, times):
        return build(process, np.append(edm_times(process, len(times) - 2), 0.0))

    def grid(process, steps):
        return np.append(edm_times(process, steps - 1), 0.0)

    ours = dataclasses.replace(claims, grid=grid, calls=lambda times: 2 * len(times) - 3)
    ours = dataclasses.replace(ours, processes=narrow())
    testing.certify(to_zero, ours).raise_if_failed()


@pytest.mark.parametrize(
    ("make", "claims"),
    [
        (sampler.heun, testing.Claims(order=2)),
        (
            sampler.ancestral,
            testing.Claims(
                deterministic=False, weak_order=1, fresh=posterior, processes=preserving()
            ),
        ),
    ],
)
def test_ours_pass(make, claims):
    """In one line; the report is a table and a picture."""
    report = testing.certify(testing.stepper(make), claims)
    report.raise_if_failed()
    assert report.passed
    assert len(str(report).splitlines()) > len(report.rows)
    assert "FAILS" not in str(report)
    figure = report.figure()
    assert isinstance(figure, matplotlib.figure.Figure)
    flows, laws = figure.axes
    assert flows.get_visible() == claims.deterministic
    assert len(laws.lines) == 2 * len(claims.processes or (1, 2))
    assert not jax.config.jax_enable_x64


def test_the_adapter_of_ours_is_the_driver(x64, key):
    """The certificate's loop gives the driver's numbers, also through a stepper's table."""
    p = process.gaussian(process.edm())
    law, times = exact.mixture(0), exact.spaced(p, 10)
    x = exact.starts(p, law, times, np.linspace(0.1, 0.9, 12).reshape(3, 4))
    denoise = exact.Denoiser(p, law)
    for make in (sampler.heun, sampler.ancestral):
        out = testing.stepper(make)(p, times)(denoise, x, 0)
        wanted = sampler.sample(
            key, make(p), denoise.native, sampler.plan(p, times), jnp.asarray(x)
        ).x
        np.testing.assert_allclose(out, wanted, atol=1e-12)
        watched = exact.Denoiser(p, law, recording=True)
        out = testing.stepper(make)(p, times)(watched, x, 0)
        np.testing.assert_allclose(out, wanted, atol=1e-12)
        assert watched.rows == 3 * testing.stepper(make).calls(p, times)
        np.testing.assert_array_equal(np.unique(watched.times)[-10:], np.sort(times[:-1]))


def test_the_exact_law_is_the_librarys(x64):
    """Denoiser, moments, and a flow that a fine numerical one approaches."""
    from jaxinf import core, score

    p = process.gaussian(process.edm())
    law = exact.normal([0.7, -0.4], [0.6, 0.3])
    data = core.gaussian(jnp.array([0.7, -0.4]), core.Diagonal(jnp.array([0.6, 0.3])))
    x = np.array([0.3, -1.0])
    denoise = exact.Denoiser(p, law)
    np.testing.assert_allclose(
        denoise(x[None], 2.0)[0], score.oracle(p, data)(jnp.asarray(x), 2.0), rtol=1e-13
    )
    np.testing.assert_allclose(law.moments((0.5, 2.0))[1], 0.25 * np.array([0.36, 0.09]) + 4)
    mixed, one = exact.mixture(3, dimensions=1), core.mixture
    m = one(*map(jnp.asarray, (mixed.weights[0], mixed.means.T, mixed.scales.T)))
    sign = mixed.rotation[0, 0]  # a rotation of the line is a sign
    denoise, oracle = exact.Denoiser(p, mixed), score.oracle(p, m)
    wanted = sign * oracle(jnp.asarray(sign * x[:1]), 0.8)
    np.testing.assert_allclose(denoise(x[:1, None], 0.8)[0], wanted, rtol=1e-12)
    np.testing.assert_allclose(denoise.native(jnp.asarray(x[:1]), 0.8), wanted, rtol=1e-12)
    batched = denoise(x[:, None], np.array([0.8, 2.0]))
    np.testing.assert_allclose(batched[1], denoise(x[1:, None], 2.0)[0], rtol=1e-13)
    u = np.array([[0.2], [0.9]])
    np.testing.assert_allclose(mixed.cdf(mixed.quantile(u, (1.0, 0.5)), (1.0, 0.5)), u, rtol=1e-12)


def test_times_of_a_noise_level(x64):
    """The certificate's grid is Karras' where time is the noise level, and ends with noise."""
    p = process.gaussian(process.edm(0.05, 80.0))
    wanted = edm_times(p, 9)
    np.testing.assert_allclose(exact.spaced(p, 9), wanted, rtol=1e-12)
    p = process.gaussian(process.cosine())
    alpha, sigma = testing.levels(p, exact.spaced(p, 9))
    np.testing.assert_allclose(sigma / alpha, wanted, rtol=1e-9)


def test_bounds_are_those_of_four_deviations():
    """One z: 4. The distribution's bound holds for draws of the law, and is not loose."""
    assert abs(z_bound(1) - 4) < 1e-9
    assert 4.5 < z_bound(12) < 4.6
    rng = np.random.default_rng(0)
    gaps = [
        np.max(np.abs(np.sort(rng.uniform(size=500)) - np.arange(500) / 500)) for _ in range(50)
    ]
    assert max(gaps) < kolmogorov(500) < 3 * np.median(gaps)


def test_what_is_not_claimed_gets_no_verdict():
    claims = testing.Claims(independent_of_batch=False, processes=exploding())
    report = testing.certify(faulty.ddim(guided=(0, 1)), claims)
    assert report.passed
    verdicts = {row.law: row.verdict for row in report.rows}
    assert verdicts["order, EDM"] is None
    assert verdicts["batch: alone"] is None
    assert verdicts["noise"] is True


def test_a_failed_report_tells_what_to_mend():
    row = testing.Row("order", "2", "1.0", "0.15", False, "look at the correction")
    good = dataclasses.replace(row, law="calls", verdict=True)
    report = testing.Report((row, good), ())
    assert not report.passed
    assert "FAILS" in str(report)
    assert "1 of 2 fail" in str(report)
    with pytest.raises(AssertionError, match=r"order: 1.0; look at the correction"):
        report.raise_if_failed()


@pytest.mark.parametrize(
    ("build", "claims", "message"),
    [
        (faulty.ddim(), testing.Claims(weak_order=1), "deterministic=False"),
        (faulty.ddim(), testing.Claims(deterministic=False, order=1), "weak_order=1"),
        (
            faulty.ddim(),
            testing.Claims(deterministic=False, weak_order=1, grid=karras, fresh=posterior),
            "leave out fresh",
        ),
        (faulty.ddim(), testing.Claims(processes=()), "leave it out"),
        (lambda p, t: lambda d, x, seed: x[0], testing.Claims(), "of x_T's shape"),
        (lambda p, t: lambda d, x, seed: d(x[0], 1.0), testing.Claims(), "hand x on"),
    ],
)
def test_bad_input(build, claims, message):
    with pytest.raises(ValueError, match=message):
        testing.certify(build, claims)
