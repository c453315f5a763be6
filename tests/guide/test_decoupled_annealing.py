"""Decoupled annealing held to the posterior of a Gaussian, and to its own law elsewhere."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, guide, mcmc, process, sampler, score
from jaxinf.sampler import driver

P = process.gaussian(process.cosine())
MEAN, SCALE = np.array([0.5, -0.25, 1.0]), 0.75
LAW = core.gaussian(jnp.asarray(MEAN), core.Diagonal(SCALE))
DENOISER = score.oracle(P, LAW)
OPERATOR = np.array([[1.0, -0.5, 0.25], [0.0, 1.0, 0.5]])
Y, NOISE = np.array([1.5, -1.0]), 0.5
DATA = (jnp.asarray(OPERATOR), jnp.asarray(Y), jnp.asarray(NOISE))


def log_likelihood(data, x0):
    operator, y, noise = data
    return -jnp.sum(jnp.square(y - operator @ x0)) / (2 * noise**2)


def posterior(mean, variance):
    """Mean and covariance of N(mean, variance I) given the observation."""
    precision = np.eye(3) / variance + OPERATOR.T @ OPERATOR / NOISE**2
    covariance = np.linalg.inv(precision)
    return covariance @ (mean / variance + OPERATOR.T @ Y / NOISE**2), covariance


@core.record
class Exactly:
    """A kernel that draws from the local law, as a chain without end would."""

    metric: core.Leaf

    def init(self, target, z):
        return mcmc.State(z, jnp.zeros(()), jnp.zeros_like(z))

    def step(self, key, target, state):
        gradient, hessian = (f(target.log_prob) for f in (jax.grad, jax.hessian))
        factor = jnp.linalg.cholesky(-hessian(state.z))
        mode = state.z + jax.scipy.linalg.cho_solve((factor, True), gradient(state.z))
        z = jax.random.normal(key, state.z.shape, state.z.dtype)
        draw = mode + jax.scipy.linalg.solve_triangular(factor, z, lower=True, trans=1)
        zero = jnp.zeros((), jnp.int32)
        return state._replace(z=draw), mcmc.Info(jnp.ones(()), zero > 0, jnp.zeros(()), zero)


EXACTLY = Exactly(core.white())
KERNELS = {
    "exactly": (EXACTLY, 1),
    "mala": (mcmc.mala(0.5), 60),
    "hmc": (mcmc.hmc(4, 0.3), 25),
    "random_walk": (mcmc.random_walk(0.5), 250),
}


def scores(x, mean, covariance):
    """z-scores of mean and covariance of normal draws."""
    first = (x.mean(0) - mean) / np.sqrt(np.diag(covariance) / len(x))
    spread = np.outer(np.diag(covariance), np.diag(covariance)) + covariance**2
    second = (np.cov(x.T, bias=True) - covariance) / np.sqrt(spread / len(x))
    return np.append(first, second.ravel())


def run(key, stepper, steps=4, batch=8000, law=DENOISER):
    plan = sampler.uniform(stepper.process, steps)
    x_T = stepper.process.prior().sample(key, (batch, 3))
    return sampler.sample(key, stepper, law, plan, x_T, trajectory=True)


@pytest.mark.parametrize("name", KERNELS)
def test_the_end_is_the_posterior(name, key):
    """Data N(m, d^2), exact r_t and one step to E[x_0 | x_t]: exact after any number of steps."""
    kernel, moves = KERNELS[name]
    stepper = guide.decoupled(
        P, log_likelihood, kernel, data=DATA, moves=moves, flow_steps=1, data_scale=SCALE
    )
    out = run(key, stepper)
    assert np.abs(scores(np.asarray(out.x, np.float64), *posterior(MEAN, SCALE**2))).max() < 4
    assert 0.2 < out.info.path.info.acceptance.mean() <= 1


def test_every_level_has_its_law(key):
    """x_s given the observation is N(alpha m_y, alpha^2 C_y + sigma^2) on the way."""
    stepper = guide.decoupled(
        P, log_likelihood, EXACTLY, data=DATA, moves=1, flow_steps=1, data_scale=SCALE
    )
    out = run(key, stepper, batch=20_000)
    mean, covariance = posterior(MEAN, SCALE**2)
    for s, x in zip(np.linspace(1, 0, 5)[1:], out.info.path.x, strict=True):
        alpha, sigma = np.cos(np.pi / 2 * s), np.sin(np.pi / 2 * s)
        law = alpha * mean, alpha**2 * covariance + sigma**2 * np.eye(3)
        assert np.abs(scores(np.asarray(x, np.float64), *law)).max() < 4


@pytest.mark.parametrize("flow", [sampler.rk4, sampler.heun])
def test_along_the_flow_its_own_law(flow, key):
    """x0hat = d x_t / sqrt(alpha^2 d^2 + sigma^2), not the mean, and the paper's r = sigma / alpha.

    The law is another than the posterior's, and is found level by level with NumPy.
    """
    p = process.gaussian(process.cosine(t_max=0.9))
    law = core.gaussian(jnp.zeros(3), core.Diagonal(SCALE))
    stepper = guide.decoupled(
        p, log_likelihood, EXACTLY, data=DATA, moves=1, flow=flow(p), flow_steps=60
    )
    out = run(key, stepper, 3, 20_000, score.oracle(p, law))
    times = np.linspace(0.9, 0, 4)
    alpha, sigma = np.cos(np.pi / 2 * times), np.sin(np.pi / 2 * times)
    mean, covariance = np.zeros(3), sigma[0] ** 2 * np.eye(3)
    for i in range(3):
        slope = SCALE / np.sqrt(alpha[i] ** 2 * SCALE**2 + sigma[i] ** 2)
        width = (sigma[i] / alpha[i]) ** 2
        shift, local = posterior(np.zeros(3), width)
        gain = slope * local / width
        mean, covariance = gain @ mean + shift, gain @ covariance @ gain.T + local
        mean = alpha[i + 1] * mean
        covariance = alpha[i + 1] ** 2 * covariance + sigma[i + 1] ** 2 * np.eye(3)
        if i == 0:  # where the flow leads, number by number
            x_T = p.prior().sample(key, (20_000, 3))
            error = jnp.abs(out.info.path.info.clean[0] - slope * x_T)
            # the last step is Euler's: h^2 / 2 of the second derivative, taken twice
            bound = (0.9 / 60 * np.pi / 2) ** 2 * (1 / SCALE**2 - 1)
            assert bool(jnp.all(error <= bound * slope * jnp.abs(x_T) + 1e-5))
    found = scores(np.asarray(out.x, np.float64), mean, covariance)
    assert np.abs(found).max() < 4
    assert np.abs(mean - posterior(np.zeros(3), SCALE**2)[0]).max() > 0.05


def test_coloured_noise_and_shaped_examples(key):
    """Noise and data of one covariance over two rows of three numbers: still the posterior."""
    matrix = np.array([[1.0, 0.6], [0.6, 2.0]])
    p = process.gaussian(process.cosine(), core.dense(jnp.asarray(matrix)))
    full = np.kron(matrix, np.eye(3))
    y = np.arange(6.0).reshape(2, 3) / 4

    def near(y, x0):
        return -jnp.sum(jnp.square(x0 - y)) / 2

    @core.record
    class Mean:
        """E[x_0 | x_t] of N(0, d^2 C): alpha d^2 / (alpha^2 d^2 + sigma^2) x."""

        def __call__(self, x, t, cond=None):
            power = jnp.square(p.alpha(t) * SCALE) + jnp.square(p.sigma(t))
            return p.alpha(t) * SCALE**2 / power * x

    stepper = guide.decoupled(
        p, near, EXACTLY, data=jnp.asarray(y), moves=1, flow_steps=1, data_scale=SCALE
    )
    x_T = p.prior().sample(key, (8000, 2, 3))
    x = sampler.sample(key, stepper, Mean(), sampler.uniform(p, 3), x_T).x.reshape(-1, 6)
    covariance = np.linalg.inv(np.linalg.inv(SCALE**2 * full) + np.eye(6))
    assert np.abs(scores(np.asarray(x, np.float64), covariance @ y.ravel(), covariance)).max() < 4


def test_the_calls_are_the_flows():
    plan = sampler.uniform(P, 6)
    kernel = mcmc.mala(0.5)
    assert plan.calls(guide.decoupled(P, log_likelihood, kernel, data_scale=1.0)) == 30
    flow = sampler.heun(P)  # two calls a step, one where it ends at 0
    stepper = guide.decoupled(P, log_likelihood, kernel, flow=flow, flow_steps=3, data_scale=1.0)
    assert plan.calls(stepper) == 6 * 5


def test_other_numbers_recompile_nothing_and_observations_lie_side_by_side(key):
    plan, x_T = sampler.uniform(P, 3), P.prior().sample(key, (2, 3))

    def run(y, scale=1.0):
        stepper = guide.decoupled(
            P, log_likelihood, mcmc.mala(0.5 * scale), data=(DATA[0], y, DATA[2]), moves=3,
            data_scale=jnp.asarray(scale),
        )  # fmt: skip
        return sampler.sample(key, stepper, DENOISER, plan, x_T).x

    y = jnp.asarray(Y)
    first = run(y)
    count = driver._sample._cache_size()
    run(y + 1, 0.5)
    assert driver._sample._cache_size() == count
    chex.assert_trees_all_close(jax.jit(jax.vmap(run))(jnp.stack([y, y + 1]))[0], first, rtol=1e-4)


def test_an_object_with_a_log_prob_is_a_likelihood(key):
    near = core.gaussian(jnp.zeros(3), core.Diagonal(1.0))
    stepper = guide.decoupled(P, near, mcmc.mala(0.5), data_scale=SCALE, moves=2)
    assert bool(jnp.isfinite(run(key, stepper, batch=2).x).all())


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"likelihood": 3.0}, TypeError, "function"),
        ({"kernel": 3.0}, TypeError, "metric"),
        ({"flow": sampler.unipc(P)}, TypeError, "one-step"),
        ({"moves": 0}, ValueError, "moves must be"),
        ({"flow_steps": 0}, ValueError, "flow_steps must be"),
        ({"data_scale": -1.0}, ValueError, "positive"),
        ({"data_scale": np.inf}, ValueError, "needs alpha"),
    ],
)
def test_bad_input_is_refused(options, error, message):
    base = {"likelihood": log_likelihood, "kernel": mcmc.mala(0.5), "data_scale": 1.0} | options
    with pytest.raises(error, match=message):
        guide.decoupled(P, base.pop("likelihood"), base.pop("kernel"), **base)


def test_a_likelihood_of_a_vector_and_other_noise_are_refused(key):
    stepper = guide.decoupled(P, lambda data, x0: x0, mcmc.mala(0.5), data_scale=1.0)
    with pytest.raises(ValueError, match="one number"):
        run(key, stepper, batch=2)
    stepper = guide.decoupled(P, log_likelihood, mcmc.mala(0.5), data=DATA, data_scale=1.0)
    plan, noise = sampler.uniform(P, 2), core.brownian(1.0)
    with pytest.raises(TypeError, match="increments are independent"):
        sampler.sample(key, stepper, DENOISER, plan, jnp.zeros((2, 3)), noise=noise)
