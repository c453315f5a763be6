"""Replacement held to the exact law of the whole sampler, which is not the conditional's."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, process, sampler, score
from jaxinf.sampler import driver

SCALE = 0.8
COVARIANCE = np.array([[1.0, 0.9], [0.9, 1.3]])
MEAN = np.array([0.4, -0.2])
Y = 1.75
P = process.gaussian(process.cosine(), core.Diagonal(SCALE))
LAW = core.gaussian(jnp.asarray(MEAN), core.dense(jnp.asarray(COVARIANCE)))
KNOWN, SEEN = jnp.array([True, False]), jnp.array([Y, 0.0])
CONDITIONAL = (
    MEAN[1] + COVARIANCE[1, 0] / COVARIANCE[0, 0] * (Y - MEAN[0]),
    COVARIANCE[1, 1] - COVARIANCE[1, 0] ** 2 / COVARIANCE[0, 0],
)


def law_of_the_sampler(plan):
    """Mean and covariance of the whole walk, by NumPy alone, ancestral steps written out."""
    times = np.asarray(plan.times)
    alpha, sigma = np.cos(np.pi / 2 * times), SCALE * np.sin(np.pi / 2 * times)
    mean, covariance = np.zeros(2), sigma[0] ** 2 * np.eye(2)
    keep = np.diag([0.0, 1.0])
    for (a_t, a_s), (s_t, s_s) in zip(
        itertools.pairwise(alpha), itertools.pairwise(sigma), strict=True
    ):
        if s_s > s_t:  # forward: x_s = (a_s / a_t) x + noise
            ratio = a_s / a_t
            mean = ratio * mean
            covariance = ratio**2 * covariance + (s_s**2 - (ratio * s_t) ** 2) * np.eye(2)
            continue
        noisy = a_t**2 * COVARIANCE + s_t**2 * np.eye(2)
        gain = a_t * COVARIANCE @ np.linalg.inv(noisy)  # E[x_0 | x_t] = MEAN + gain (x - a_t MEAN)
        # q(x_s | x_t, x_0): the posterior's mean and variance
        one_step = s_t**2 - (a_t / a_s) ** 2 * s_s**2
        on_clean, on_noisy = a_s * one_step / s_t**2, a_t / a_s * s_s**2 / s_t**2
        slope = on_clean * gain + on_noisy * np.eye(2)
        mean = slope @ mean + on_clean * (MEAN - a_t * gain @ MEAN)
        fresh = one_step * s_s**2 / s_t**2 * np.eye(2)
        covariance = slope @ covariance @ slope.T + fresh
        mean = keep @ mean + np.array([a_s * Y, 0.0])
        covariance = keep @ covariance @ keep + np.diag([s_s**2, 0.0])
    return mean, covariance


@pytest.fixture
def plan():
    """Of 40 steps."""
    return sampler.uniform(P, 40)


@pytest.mark.parametrize("resamplings", [1, 4])
def test_the_law_is_the_exact_one_of_the_walk(resamplings, plan, key, x64):
    """Mean and variance of 20,000 draws by z-scores, plain and with RePaint's plan."""
    plan = guide.repaint(plan, 5, resamplings)
    mean, covariance = law_of_the_sampler(plan)
    x_T = P.prior().sample(key, (20_000, 2))
    stepper = guide.replacement(sampler.ancestral(P), KNOWN, SEEN)
    x = np.asarray(sampler.sample(key, stepper, score.oracle(P, LAW), plan, x_T).x)
    np.testing.assert_array_equal(x[:, 0], Y)
    variance = covariance[1, 1]
    assert abs(x[:, 1].mean() - mean[1]) < 4 * np.sqrt(variance / len(x))
    assert abs(x[:, 1].var() - variance) < 4 * variance * np.sqrt(2 / len(x))


def test_known_and_unknown_covary_on_the_way(plan, key, x64):
    """Half way the joint law of both parts is the exact one: the known part is noised anew."""
    plan = sampler.plan(P, plan.times[:25])
    mean, covariance = law_of_the_sampler(plan)
    x_T = P.prior().sample(key, (20_000, 2))
    stepper = guide.replacement(sampler.ancestral(P), KNOWN, SEEN)
    x = np.asarray(sampler.sample(key, stepper, score.oracle(P, LAW), plan, x_T).x)
    errors = np.sqrt(np.diag(covariance) / len(x))
    assert np.abs((x.mean(0) - mean) / errors).max() < 4
    assert covariance[0, 1] == 0
    second = np.cov(x.T, bias=True)
    variances = np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2
    assert (np.abs(second - covariance) / np.sqrt(variances / len(x))).max() < 4


def test_the_known_parts_noise_is_its_own(key):
    """Noise that is correlated over the coordinates: both parts are independent after a step."""
    p = process.gaussian(process.cosine(), core.dense(jnp.asarray(COVARIANCE)))
    stepper = guide.replacement(sampler.ancestral(p), KNOWN, SEEN)
    plan, x_T = sampler.plan(p, [0.9, 0.5]), jnp.ones((20_000, 2))
    x = np.asarray(sampler.sample(key, stepper, score.oracle(p, LAW), plan, x_T).x)
    known = np.sin(np.pi / 4) ** 2 * COVARIANCE[0, 0]
    assert abs(x[:, 0].var() / known - 1) < 4 * np.sqrt(2 / len(x))
    assert abs(np.corrcoef(x.T)[0, 1]) < 4 / np.sqrt(len(x))


def test_it_is_biased_and_repaint_less(plan, x64):
    """By the exact law: the bias stays as steps shrink, and falls with the resamplings."""

    def errors(plan):
        mean, covariance = law_of_the_sampler(plan)
        return abs(mean[1] - CONDITIONAL[0]), abs(covariance[1, 1] - CONDITIONAL[1])

    fine, finer = errors(sampler.uniform(P, 400)), errors(sampler.uniform(P, 800))
    np.testing.assert_allclose(fine, finer, rtol=0.02)  # not an error of the discretisation
    assert finer[0] > 0.1
    assert finer[1] > 0.1
    biases = [errors(guide.repaint(sampler.uniform(P, 400), 10, r)) for r in (1, 2, 5, 20)]
    assert (np.diff(np.array(biases), axis=0) < 0).all()
    assert biases[-1][0] < biases[0][0] / 4
    assert biases[-1][1] < biases[0][1] / 4


def test_an_uncorrelated_law_has_no_bias(key, x64):
    """The unknown part is the plain sampler's, to the last bit, whatever is known."""
    plan = sampler.uniform(P, 10)
    law = core.gaussian(jnp.asarray(MEAN), core.Diagonal(jnp.array([1.0, 0.7])))
    x_T = P.prior().sample(key, (5, 2))
    denoiser, plain = score.oracle(P, law), sampler.ancestral(P)
    wanted = sampler.sample(key, plain, denoiser, plan, x_T).x
    found = sampler.sample(key, guide.replacement(plain, KNOWN, SEEN), denoiser, plan, x_T).x
    np.testing.assert_allclose(found[:, 1], wanted[:, 1], rtol=1e-14)


def test_repaint_walks_as_the_paper_does():
    """Of 7 steps with jump 2 and 2 resamplings: not from the start, and not after the end."""
    plan = sampler.Plan(np.array([1, 0.9, 0.8, 0.7, 0.6, 0.4, 0.2, 0.0]))
    walked = [1, 0.9, 0.8, 0.7, 0.6, 0.8, 0.7, 0.6, 0.4, 0.2, 0.6, 0.4, 0.2, 0.0]
    np.testing.assert_allclose(guide.repaint(plan, 2, 2).times, walked)
    assert guide.repaint(plan, 2, 1) is plan
    calls = guide.repaint(plan, 2, 3).calls(sampler.ancestral(P))
    assert calls == 7 + 2 * 2 * 2


def test_other_numbers_recompile_nothing_and_observations_lie_side_by_side(key):
    plan, x_T = sampler.uniform(P, 4), P.prior().sample(key, (3, 2))

    def run(y, known=KNOWN):
        stepper = guide.replacement(sampler.ancestral(P), known, y)
        return sampler.sample(key, stepper, score.oracle(P, LAW), plan, x_T).x

    first = run(SEEN)
    count = driver._sample._cache_size()
    run(SEEN + 1, ~KNOWN)
    assert driver._sample._cache_size() == count
    both = jax.jit(jax.vmap(run))(jnp.stack([SEEN, SEEN - 1]))
    chex.assert_trees_all_close(both[0], first, rtol=1e-5)
    np.testing.assert_allclose(both[1, :, 0], Y - 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: guide.replacement(sampler.unmask(process.masked(3)), KNOWN, SEEN), TypeError,
         "Gaussian process"),
        (lambda: guide.replacement(sampler.unipc(P), KNOWN, SEEN), TypeError, "one-step"),
        (lambda: guide.replacement(sampler.ancestral(P), KNOWN, jnp.zeros(3)), ValueError,
         "one example's shape"),
        (lambda: guide.repaint(sampler.uniform(P, 20), 0, 2), ValueError, "jump must be"),
        (lambda: guide.repaint(sampler.uniform(P, 20), 2, 0), ValueError, "resamplings must be"),
        (lambda: guide.repaint(sampler.uniform(P, 5), 5), ValueError, "more steps"),
        (lambda: guide.repaint(guide.repaint(sampler.uniform(P, 9), 2)), ValueError, "falls"),
        (lambda: jax.jit(lambda t: guide.repaint(sampler.Plan(t)).times)(jnp.ones(3)), TypeError,
         "outside jit"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_observation_of_another_shape_is_refused(key):
    stepper = guide.replacement(sampler.ancestral(P), jnp.array([True] * 3), jnp.zeros(3))
    with pytest.raises(ValueError, match="y must have one example's shape"):
        sampler.sample(key, stepper, score.oracle(P, LAW), sampler.uniform(P, 3), jnp.zeros((4, 2)))
