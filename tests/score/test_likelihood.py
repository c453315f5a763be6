"""Log densities by the probability flow, against laws whose density is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from score_models import COVARIANCE, dense_gaussian, plane, three_modes, unhooked, z_score

from jaxinf import core, process, sampler, score

SCHEDULES = {
    "cosine": (process.cosine, sampler.uniform),
    "linear_beta": (process.linear_beta, sampler.uniform),
    "edm": (process.edm, sampler.karras),
    "linear_interpolation": (process.linear_interpolation, sampler.uniform),
    "variance_exploding": (process.variance_exploding, sampler.uniform),
}
LAWS = {"gaussian": dense_gaussian, "mixture": three_modes}


def make(name, law, steps=100):
    """A process, its perfect denoiser, a plan, and the exact law at t_max."""
    schedule, plan = SCHEDULES[name]
    p = process.gaussian(schedule())
    plan = plan(p, steps, end=p.t_min)
    return p, score.oracle(p, law), {"plan": plan, "prior": p.marginal(law, p.t_max)}


@pytest.mark.parametrize(
    ("name", "law"),
    [
        *((name, three_modes) for name in SCHEDULES),
        ("edm", dense_gaussian),
        ("variance_exploding", dense_gaussian),
    ],
)
def test_the_density_of_a_known_law(name, law, x64, key):
    """With the perfect denoiser and the exact trace it is log p_{t_min}, to the integrator's error.

    At 100 steps that is 1e-6 at most (EDM), a tenth of what is allowed.
    """
    law = law()
    p, oracle, along = make(name, law)
    x = jnp.pad(plane(4), ((0, 0), (0, law.sample(key).size - 2)))
    value, info = score.log_density(key, oracle, x, **along)
    wanted = jax.vmap(p.marginal(law, p.t_min).log_prob)(x)
    np.testing.assert_allclose(value, wanted, atol=1e-5, rtol=0)
    np.testing.assert_array_equal(info.standard_error, 0.0)
    assert info.x_T.shape == x.shape


def test_a_coloured_process(x64, key):
    """Noise of covariance C and the default prior N(0, sigma^2 C), which is the law itself here.

    Data N(0, C) under variance-preserving noise of covariance C stay N(0, C) at every time.
    """
    noise = core.dense(jnp.asarray(COVARIANCE))
    p, law = process.gaussian(process.cosine(), noise), core.gaussian(jnp.zeros(3), noise)
    x = jnp.pad(plane(4), ((0, 0), (0, 1)))
    plan = sampler.uniform(p, 20, end=p.t_min)
    value, info = score.log_density(key, score.oracle(p, law), x, plan=plan)
    np.testing.assert_allclose(value, jax.vmap(law.log_prob)(x), rtol=1e-10)
    np.testing.assert_allclose(info.x_T, x, atol=1e-10)  # the flow stands still


def test_hutchinson_is_unbiased_and_knows_its_error(x64, key):
    """On one example the mean over draws is the exact value, and standard_error^2 is the spread.

    The probes of example i depend on the key and on i alone.
    """
    covariance = (0.3 * COVARIANCE + 0.7 * np.diag(np.diag(COVARIANCE))) / 25
    law = core.gaussian(jnp.zeros(3), core.dense(jnp.asarray(covariance)))
    p, oracle, along = make("linear_interpolation", law, 40)
    x, trace = jnp.tile(jnp.array([0.1, -0.2, 0.3]), (200, 1)), score.hutchinson(4)
    value, info = score.log_density(key, oracle, x, trace=trace, **along)
    assert abs(z_score(value, float(p.marginal(law, p.t_min).log_prob(x[0])))) < 4
    squares = (value - jnp.mean(value)) ** 2 * 200 / 199
    assert abs(z_score(squares - info.standard_error**2, 0.0)) < 4
    assert 0.01 < float(jnp.std(value)) < 0.2
    others = jnp.where(jnp.arange(200)[:, None] < 100, x, 0.0)
    others, _ = score.log_density(key, oracle, others, trace=trace, **along)
    np.testing.assert_array_equal(value[:100], others[:100])


def test_the_error_falls_as_the_fourth_power_of_the_steps(x64, key):
    """Twice the steps leave a sixteenth of the error, on two doublings above rounding."""
    law, errors = core.gaussian(jnp.array([0.5]), core.Diagonal(jnp.array([0.6]))), []
    for steps in (10, 20, 40):
        p, oracle, along = make("cosine", law, steps)
        x = plane(4)[:, :1]
        value, _ = score.log_density(key, oracle, x, **along)
        wanted = jax.vmap(p.marginal(law, p.t_min).log_prob)(x)
        errors.append(float(jnp.max(jnp.abs(value - wanted))))
    assert 1e-11 < errors[-1] < 1e-5
    orders = np.log2(np.divide(errors[:-1], errors[1:]))
    np.testing.assert_allclose(orders, 4, atol=0.2)


def test_images_and_float32(key):
    """Example axes do not matter: a (2, 2, 1) image of a law on 4 numbers, in float32.

    The error is rounding: near t_min = 1e-3 the noise is a difference of two numbers that agree to
    t_min, which leaves it eps / t_min, over a few steps of 1 / 100: 1e-4 in nats.
    """
    p = process.gaussian(process.linear_interpolation())
    scale = jnp.array([0.5, 1.0, 1.5, 0.8]).reshape(2, 2, 1)
    law = core.Gaussian(jnp.full((2, 2, 1), 0.3), core.Diagonal(scale))
    x = jnp.linspace(-1.0, 1.5, 12).reshape(3, 2, 2, 1)
    plan, prior = sampler.uniform(p, 100, end=p.t_min), p.marginal(law, p.t_max)
    value, info = score.log_density(key, score.oracle(p, law), x, plan=plan, prior=prior)
    assert value.dtype == jnp.float32
    assert info.x_T.shape == x.shape
    wanted = jax.vmap(p.marginal(law, p.t_min).log_prob)(x)
    np.testing.assert_allclose(value, wanted, atol=1e-4, rtol=0)


def test_bits_per_dimension():
    """Even levels cost log2(levels); a discrete law that is even over its cells, its entropy."""
    for levels, dimensions in ((256, 7), (17, 1)):
        flat = jnp.full(3, dimensions * np.log(0.5))  # y is even over [-1, 1]
        bits = score.bits_per_dimension(flat, dimensions, levels)
        np.testing.assert_allclose(bits, np.log2(levels), rtol=1e-6)
    mass = np.array([0.5, 0.25, 0.125, 0.125])  # the density over a cell of width 2 / 4
    bits = score.bits_per_dimension(jnp.asarray(np.log(mass / 0.5), jnp.float32), 1, 4)
    np.testing.assert_allclose(bits, -np.log2(mass), rtol=1e-6)
    np.testing.assert_allclose(np.sum(mass * bits), 1.75, rtol=1e-6)


_traces = []


def _network(params, x, t, cond):
    _traces.append(t)
    return params * x


def test_other_numbers_compile_nothing(key):
    """Other parameters, process, plan and prior of the same structure run the compiled program."""
    for number in (0.3, 0.4):
        p = process.gaussian(process.linear_beta(number))
        denoiser = score.denoiser(p, _network, jnp.float32(number), predicts=score.v)
        prior = core.Gaussian(jnp.full(2, number), core.Diagonal(1.0 + number))
        plan = sampler.karras(p, 5, rho=2 + number, end=p.t_min)
        _, info = score.log_density(
            key, denoiser, jnp.ones((2, 2)), plan=plan, prior=prior, trace=score.hutchinson(1)
        )
        assert bool(jnp.all(jnp.isnan(info.standard_error)))  # one probe knows no spread
        assert bool(_traces) == (number == 0.3)
        _traces.clear()


def test_bad_input_names_its_mend(key):
    """What is wrong is said before anything is compiled."""
    law = three_modes()
    p, oracle, along = make("cosine", law, 3)
    x = jnp.zeros((2, 2))

    def call(key=key, x=x, cond=None, plan=along["plan"], prior=None):
        with unhooked():
            score.log_density(key, oracle, x, cond, plan=plan, prior=prior)

    with pytest.raises(TypeError, match=r"data\.dequantise"):
        call(x=jnp.zeros((2, 2), jnp.uint8))
    with pytest.raises(ValueError, match=r"x\[None\] makes"):
        call(x=x[:0])
    with pytest.raises(ValueError, match="leading axis 2"):
        call(cond=jnp.zeros(3))
    with pytest.raises(ValueError, match=r"end the plan at process\.t_min"):
        call(plan=sampler.uniform(p, 3))
    with pytest.raises(TypeError, match=r"process\.marginal\(law, process\.t_max\)"):
        call(prior=lambda x: x)
    with pytest.raises(TypeError, match=r"jax\.random\.key\(seed\)"):
        call(key=jax.random.PRNGKey(0))
    with pytest.raises(ValueError, match=r"core\.exact\(\)"):
        score.hutchinson(0)
