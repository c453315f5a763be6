"""Plans by log-SNR, angle, power, and the last times of equal blocks."""

import numpy as np
import pytest

from jaxinf import process, sampler
from jaxinf.sampler import plans

VP = process.gaussian(process.cosine(t_max=0.99))
ZERO = process.gaussian(process.cosine())
EDM = process.gaussian(process.edm())
LINEAR = process.gaussian(process.linear_beta())
TABLE = process.gaussian(process.betas(np.linspace(1e-4, 0.02, 1000)))
FLOW = process.gaussian(process.linear_interpolation())


def log_snr(name, t):
    """Log-SNR in closed form."""
    if name == "cosine":
        return -2 * np.log(np.tan(np.pi * t / 2))
    if name == "edm":
        return -2 * np.log(t)
    integral = 0.1 * t + 0.5 * 19.9 * t**2
    return -integral - np.log(-np.expm1(-integral))


@pytest.mark.parametrize(("name", "p"), [("cosine", VP), ("edm", EDM), ("linear", LINEAR)])
@pytest.mark.parametrize("steps", [1, 2, 12])
def test_log_snr_rises_by_equal_steps(name, p, steps):
    """From t_max to t_min the log-SNR's differences are equal; both ends are the process's own."""
    plan = plans.uniform_log_snr(p, steps, end=p.t_min)
    assert (plan.times[0], plan.times[-1]) == (p.t_max, p.t_min)
    assert plan.steps == steps
    gaps = np.diff(log_snr(name, plan.times))
    np.testing.assert_allclose(gaps, gaps.mean(), rtol=1e-10)
    np.testing.assert_array_equal(np.asarray(plan.times).dtype, np.float64)


def test_a_closing_step_to_the_data():
    """With end = 0 the last of the steps leaves t_min, as in karras."""
    closed, open_ = plans.uniform_log_snr(EDM, 7), plans.uniform_log_snr(EDM, 6, end=EDM.t_min)
    np.testing.assert_array_equal(closed.times, [*open_.times, 0.0])
    np.testing.assert_allclose(open_.times, np.geomspace(80, 0.002, 7), rtol=1e-12)
    assert plans.uniform_log_snr(EDM, 1).times.tolist() == [80, 0]
    late = plans.uniform_log_snr(EDM, 4, end=1.0)
    np.testing.assert_allclose(late.times, np.geomspace(80, 1, 5), rtol=1e-12)


def test_the_angle_falls_by_equal_steps():
    """Equal steps of time on the cosine schedule; of arctan(t), arctan(t / (1 - t)) on others."""
    np.testing.assert_allclose(
        plans.cosine(ZERO, 8).times, sampler.uniform(ZERO, 8).times, atol=1e-14
    )
    times = plans.cosine(EDM, 10, end=EDM.t_min).times
    np.testing.assert_allclose(np.diff(np.arctan(times), 2), 0, atol=1e-14)
    times = plans.cosine(FLOW, 10).times
    tan = np.tan(np.linspace(np.pi / 2, 0, 11)[1:-1])
    np.testing.assert_allclose(times, [1, *(tan / (1 + tan)), 0], atol=1e-14)
    assert plans.cosine(ZERO, 1).times.tolist() == [1, 0]


def test_polynomial_is_its_formula():
    """t_i = end + (t_max - end) (1 - i / N)^power; power 1 is uniform."""
    np.testing.assert_allclose(
        plans.polynomial(EDM, 4, 3.0, end=16.0).times, [80, 43, 24, 17, 16], rtol=1e-14
    )
    np.testing.assert_allclose(
        plans.polynomial(ZERO, 4).times, [1, 9 / 16, 4 / 16, 1 / 16, 0], rtol=1e-14
    )
    one = plans.polynomial(VP, 7, 1.0, end=0.2).times
    np.testing.assert_allclose(one, sampler.uniform(VP, 7, end=0.2).times, rtol=1e-14)


def test_trailing_is_the_papers_table():
    """Ten steps of 1,000: 1000, 900, ..., 100, then the data; rounded where not whole."""
    np.testing.assert_array_equal(
        plans.trailing(TABLE, 10).times, [*np.arange(1000, 0, -100) / 1000, 0]
    )
    seven = np.asarray(plans.trailing(TABLE, 7).times) * 1000
    np.testing.assert_allclose(seven, [1000, 857, 714, 571, 429, 286, 143, 0], rtol=1e-14)
    np.testing.assert_array_equal(plans.trailing(TABLE, 1).times, [1, 0])
    assert plans.trailing(TABLE, 1000).steps == 1000
    np.testing.assert_allclose(
        plans.trailing(VP, 3, of=6, end=0.1).times, [0.99, 0.66, 0.33, 0.1], rtol=1e-14
    )


MAKERS = (plans.uniform_log_snr, plans.cosine, plans.polynomial, plans.trailing)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("p", [VP, EDM, LINEAR, TABLE, FLOW], ids=["vp", "edm", "lin", "tab", "fm"])
def test_every_plan_is_valid_on_every_process(make, p):
    """Falling times in range, for many steps, or the mend is told."""
    if make is plans.uniform_log_snr and p is FLOW:
        with pytest.raises(ValueError, match=r"alpha\(t_max\) > 0"):
            make(p, 5)
        return
    plan = make(p, 200)
    assert np.all(np.diff(plan.times) < 0)
    assert (plan.times[0], plan.times[-1]) == (p.t_max, 0)
    assert not plan.rises


@pytest.mark.parametrize("make", MAKERS)
def test_bad_ends_and_steps(make):
    """Each mistake is named with its mend, by each plan."""
    for steps in (0, -1):
        with pytest.raises(ValueError, match="steps must be"):
            make(VP, steps)
    for end in (0.99, 2.0, -0.1, np.nan):
        with pytest.raises(ValueError, match=r"end must be in \[0, t_max=0\.99\)"):
            make(VP, 3, end=end)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: plans.uniform_log_snr(ZERO, 5), r"t_max=0\.99.*sampler\.cosine"),
        (lambda: plans.polynomial(VP, 5, 0.0), "power must be positive"),
        (lambda: plans.trailing(VP, 11, of=10), r"1 \.\.\. 10"),
        (lambda: plans.trailing(VP, 10, end=0.5), "must fall"),
    ],
)
def test_bad_input(call, message):
    """Each mistake is named with its mend."""
    with pytest.raises(ValueError, match=message):
        call()
