"""Plans fitted by descent: the exact optimum, what stays, and what is refused."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, process, sampler, score

VE = process.gaussian(process.edm())
KEY = jax.random.key(0)


def gaussian():
    return score.oracle(VE, core.gaussian(jnp.zeros(1), core.Diagonal(0.5)))


def end_of_two_ddim_steps(middle, x, first, last):
    """DDIM on N(0, 1/4) with alpha = 1: each step multiplies x by (c + r_s r_t) / (c + r_t^2)."""
    factor = (0.25 + middle * first) / (0.25 + first**2)
    return x * factor * (0.25 + last * middle) / (0.25 + middle**2)


def test_the_optimum_of_one_inner_time_is_found(x64):
    """Two steps of DDIM on Gaussian data: the best middle is a minimum over one number."""
    plan = sampler.plan(VE, [80.0, 1.0, 0.1])
    x = jnp.array([[30.0], [-70.0], [100.0]])
    truth = x * np.sqrt((0.25 + 0.1**2) / (0.25 + 80.0**2))
    tried = np.geomspace(0.101, 79.0, 200_001)
    scale = end_of_two_ddim_steps(tried, 1.0, 80.0, 0.1) - float(truth[0, 0] / x[0, 0])
    found = sampler.optimise_plan(
        KEY, sampler.ddim(VE), gaussian(), plan, x, truth, iterations=400, learning_rate=0.1
    )
    best = tried[np.argmin(scale**2)]
    start = end_of_two_ddim_steps(1.0, 1.0, 80.0, 0.1) - float(truth[0, 0] / x[0, 0])
    lowest = np.min(scale**2) * np.mean(x**2)
    np.testing.assert_allclose(found.losses.min(), lowest, rtol=1e-4)
    assert found.losses.min() < 0.9 * found.losses[0]
    np.testing.assert_allclose(found.losses[0], start**2 * np.mean(x**2), rtol=1e-9)
    np.testing.assert_allclose(found.plan.times[1], best, rtol=1e-2)
    np.testing.assert_allclose(found.plan.times[[0, 2]], [80.0, 0.1], rtol=1e-12)


def mixture():
    law = core.mixture(jnp.array([0.4, 0.6]), jnp.array([[-1.0], [0.8]]), jnp.array([0.3, 0.4]))
    return score.oracle(VE, law)


@pytest.mark.parametrize("closing", [False, True])
def test_a_fitted_multistep_plan_is_better_on_other_starts(closing, x64):
    """Six steps of the third order: less than half the error on starts that it has not seen."""
    stepper = sampler.exponential(VE, 3, predicts=process.preconditioned(1.0), corrector=True)
    fit, held = (80 * jax.random.normal(jax.random.key(i), (256, 1)) for i in (1, 2))
    end = 0.0 if closing else VE.t_min
    plan, fine = (sampler.karras(VE, n, end=end) for n in (6, 400))

    def walk(plan, x):
        return sampler.sample(KEY, stepper, mixture(), plan, x).x

    found = sampler.optimise_plan(
        KEY, stepper, mixture(), plan, fit, walk(fine, fit), iterations=150, learning_rate=0.1
    )
    assert not found.plan.rises
    np.testing.assert_allclose(found.plan.times[-1], end)
    truth = walk(fine, held)
    before, after = (jnp.mean((walk(p, held) - truth) ** 2) for p in (plan, found.plan))
    assert after < before / 4
    chex.assert_shape(found.losses, (151,))
    best = float(jnp.mean((walk(found.plan, fit) - walk(fine, fit)) ** 2))
    np.testing.assert_allclose(best, float(found.losses.min()), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"plan": sampler.plan(VE, [80.0, 0.1])}, ValueError, "inner times"),
        ({"plan": sampler.Plan(np.array([80.0, 1, 2, 0.1]), rises=True)}, ValueError, "rises"),
        ({"iterations": 0}, ValueError, "at least 1"),
        ({"key": jnp.zeros(2, jnp.uint32)}, TypeError, "key"),
    ],
)
def test_bad_input(change, error, message):
    given = {
        "key": KEY,
        "stepper": sampler.ddim(VE),
        "denoiser": gaussian(),
        "plan": sampler.plan(VE, [80.0, 1.0, 0.1]),
        "x_T": jnp.zeros((3, 1)),
        "reference": jnp.zeros((3, 1)),
    }
    with pytest.raises(error, match=message):
        sampler.optimise_plan(**(given | change))


def test_no_signal_at_the_start_is_refused():
    p = process.gaussian(process.cosine())
    plan, x = sampler.uniform(p, 4), jnp.zeros((3, 1))
    with pytest.raises(ValueError, match="alpha > 0"):
        sampler.optimise_plan(KEY, sampler.ddim(p), gaussian(), plan, x, x)
