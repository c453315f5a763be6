"""Forward-backward Gaussian variational inference against fixed points and rates."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gaussian_targets import normal, rotated
from scipy import integrate
from sklearn.datasets import load_breast_cancer

from jaxinf import core, target, vi


def start(dim, scale=1.0, mean=0.0):
    return core.gaussian(jnp.full(dim, mean), core.dense(scale * jnp.eye(dim)))


def kl(law, mean, precision):
    """From a Gaussian to N(mean, precision^-1), by eigenvalues, which lose no digits near 0."""
    covariance = np.asarray(law.covariance.dense(len(mean)))
    root = np.linalg.cholesky(precision)
    values = np.linalg.eigvalsh(root.T @ covariance @ root) - 1
    off = root.T @ (np.asarray(law.mean) - mean)
    return 0.5 * (np.sum(values - np.log1p(values)) + off @ off)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
def test_a_gaussian_is_a_fixed_point(x64, key, share):
    """Any step below 1 / lambda_max leaves it where it is."""
    mean, precision = np.array([1.0, -2.0, 0.5]), rotated([0.5, 2.0, 7.0], 0)
    law = core.gaussian(jnp.asarray(mean), core.dense(jnp.linalg.inv(precision)))
    run = vi.forward_backward(key, normal(mean, precision), law, 50, share / 7, stochastic=False)
    np.testing.assert_allclose(run.law.mean, mean, atol=1e-12)
    np.testing.assert_allclose(run.law.covariance.dense(3), np.linalg.inv(precision), atol=1e-12)
    assert run.info.finite.all()
    assert run.info.gradient.max() < 1e-12
    assert run.info.curvature.max() < 1e-12


def test_rate_on_a_gaussian(x64, key):
    r"""Every eigenvalue's recursion, run by hand, and the theorem's rate (1 - alpha / beta)^2n."""
    values = np.linspace(1, 6, 5)
    mean, precision = np.full(5, 0.2), rotated(values, 1)
    at, begin = {}, start(5)
    for steps in (20, 50, 200):
        run = vi.forward_backward(
            key, normal(mean, precision), begin, steps, 1 / 6, stochastic=False
        )
        at[steps] = kl(run.law, mean, precision)
        s, eta = np.ones(5), 1 / 6
        for _ in range(steps):
            t = s * (1 - eta * values) ** 2
            s = (t + 2 * eta + np.sqrt(t * (t + 4 * eta))) / 2
        off = np.linalg.matrix_power(np.eye(5) - precision / 6, steps) @ -mean
        np.testing.assert_allclose(run.law.mean - mean, off, atol=1e-14)
        found = np.linalg.eigvalsh(run.law.covariance.dense(5))
        np.testing.assert_allclose(found, np.sort(s), rtol=1e-12)
        assert at[steps] < max(kl(begin, mean, precision) * (5 / 6) ** (2 * steps), 1e-25)
    assert at[20] < 1e-4
    assert at[50] < 1e-9
    assert at[200] < 1e-25


def quartic(data, x):
    return -jnp.sum(jnp.square(x)) / 2 - data * jnp.sum(x**4) / 4


def test_the_proximal_step_is_the_minimiser(x64):
    """Of negative entropy + W2^2 / (2 step), whose gradient is zero there; and it is positive."""
    from jaxinf.vi.forward_backward import proximal_entropy

    before, step = rotated([1e-3, 1.0, 4.0], 2), 0.3
    after = np.asarray(proximal_entropy(jnp.asarray(before), jnp.asarray(step)))
    # optimal map from the new to the old: T = I - step S'^-1 pushes N(0, S') to N(0, before)
    back = np.eye(3) - step * np.linalg.inv(after)
    assert np.linalg.eigvalsh(back).min() > 0
    np.testing.assert_allclose(back @ after @ back, before, atol=1e-13)
    assert np.linalg.eigvalsh(proximal_entropy(jnp.zeros((2, 2)), jnp.asarray(step))).min() >= step


def test_not_quadratic_target_in_one_dimension(x64, key):
    """E[V'] = 0 and E[V''] S = 1 by scipy's quadrature; quartic: exact with three nodes."""
    posterior = target.density(quartic, jnp.zeros(1), 0.8)
    begin = core.gaussian(jnp.array([0.7]), core.dense(jnp.array([[0.4]])))
    run = vi.forward_backward(key, posterior, begin, 300, 0.1, nodes=vi.gauss_hermite(3))
    s, m = float(run.law.covariance.dense(1)[0, 0]), float(run.law.mean[0])
    # E[1 + 3 * 0.8 x^2] s = 1 at mean 0: 2.4 s^2 + s - 1 = 0
    np.testing.assert_allclose(s, (np.sqrt(1 + 4 * 2.4) - 1) / 4.8, atol=1e-12)
    assert abs(m) < 1e-12
    found = integrate.quad(
        lambda x: (1 + 2.4 * x**2) * np.exp(-(x**2) / 2 / s) / np.sqrt(2 * np.pi * s), -20, 20
    )
    assert abs(found[0] * s - 1) < 1e-10
    assert run.info.gradient[-1] < 1e-12
    assert run.info.curvature[-1] < 1e-12


def logistic(data, x):
    inputs, labels = data
    return jnp.sum(jax.nn.log_sigmoid(labels * (inputs @ x))) - x @ x / 2


def breast_cancer():
    inputs, labels = load_breast_cancer(return_X_y=True)
    inputs = (inputs - inputs.mean(0)) / inputs.std(0)
    _, basis = np.linalg.eigh(np.cov(inputs.T))
    scores = inputs @ basis[:, -5:]
    return jnp.asarray(scores / scores.std(0)), jnp.asarray(2.0 * labels - 1)


def test_logistic_regression_is_stationary(x64, key):
    inputs, labels = breast_cancer()
    posterior = target.density(logistic, jnp.zeros(5), (inputs, labels))
    smooth = float(np.linalg.eigvalsh(inputs.T @ inputs)[-1]) / 4 + 1
    run = vi.forward_backward(
        key, posterior, start(5, 0.1), 150, 4 / smooth, nodes=vi.gauss_hermite(3)
    )
    assert run.info.finite.all()
    # against a finer rule than the one that was used
    nodes, weights = vi.gauss_hermite(5)(key, 5)
    z = run.law.mean[None] + nodes @ run.law.covariance.factor.T
    prob = np.asarray(jax.nn.sigmoid(z @ inputs.T))
    spread = weights @ (prob * (1 - prob))
    hessian = np.asarray(inputs.T @ (spread[:, None] * inputs)) + np.eye(5)
    residual = weights @ (prob - np.asarray(labels > 0)[None])
    gradient = np.asarray(inputs.T @ residual + run.law.mean)
    covariance = np.asarray(run.law.covariance.dense(5))
    scaled = np.linalg.cholesky(covariance).T @ gradient
    off = np.abs(hessian @ covariance - np.eye(5)).max()
    assert np.abs(gradient).max() < 1e-2
    assert np.abs(scaled).max() < 1e-3
    assert off < 1e-3


def test_stochastic_steps_settle_around_the_target(key):
    """Its mean is an average of gradients at draws, of stationary variance near eta / 2."""
    mean, precision = np.array([1.0, -1.0]), jnp.diag(jnp.array([1.0, 3.0]))
    posterior = normal(mean.astype(np.float32), precision)
    run = jax.vmap(lambda key: vi.forward_backward(key, posterior, start(2), 400, 0.05))
    laws = run(jax.random.split(key, 200)).law
    # m' - mu = (1 - eta l)(m - mu) - eta l sqrt(s) u, l s = 1, has variance eta / (2 - eta l)
    variance = 0.05 / (2 - 0.05 * np.array([1.0, 3.0]))
    z = (laws.mean - mean[None].astype(np.float32)) / np.sqrt(variance)[None].astype(np.float32)
    assert abs(z.mean()) < 4 / np.sqrt(400)
    assert abs((np.square(z) - 1).mean()) < 4 * np.sqrt(2 / 400)
    # the Hessian has no noise, so that the covariance is exact
    found = jax.vmap(lambda law: law.covariance.dense(2))(laws)
    np.testing.assert_allclose(
        found, np.broadcast_to(np.diag([1, 1 / 3]), found.shape), atol=2e-6, rtol=0
    )


def test_steps_that_fall_settle_nearer(key):
    mean, precision = np.array([1.0, -1.0], np.float32), jnp.eye(2)
    falling = 1 / (jnp.arange(400) + 2.0)
    run = jax.vmap(
        lambda key: vi.forward_backward(
            key, normal(mean, precision), start(2), 400, falling, draws=2
        )
    )
    laws = run(jax.random.split(key, 100)).law
    # with eta_n = 1 / (n + 2) the mean is that of 801 standard normal draws and a start of weight 1
    z = (laws.mean - mean[None] * (1 - 1 / 401)) * 401 / np.sqrt(400 / 2)
    assert abs(z.mean()) < 4 / np.sqrt(200)
    assert abs((np.square(z) - 1).mean()) < 4 * np.sqrt(2 / 200)


def test_covariance_stays_positive_beyond_the_step(x64, key):
    """Each eigenvalue is at least the step, whatever the step; a step too large is said."""
    precision = rotated([1.0, 6.0], 3)
    for step in (0.01, 0.3, 1.0):
        run = vi.forward_backward(
            key, normal(np.zeros(2), precision), start(2), 5, step, stochastic=False
        )
        found = np.linalg.eigvalsh(run.law.covariance.dense(2))
        assert found.min() > step * (1 - 1e-12)
    wild = target.density(lambda _, x: jnp.sum(jnp.exp(x**4)), jnp.zeros(1))
    run = vi.forward_backward(key, wild, start(1, 9.0), 50, 10.0, stochastic=False)
    assert not run.info.finite.all()
    assert np.isfinite(run.law.covariance.factor).all()


def test_compiled_once_and_in_batches(key):
    precisions = jnp.stack([jnp.eye(2), 2 * jnp.eye(2)])

    def run(key, precision, step):
        posterior = normal(np.ones(2, np.float32), precision)
        return vi.forward_backward(key, posterior, start(2), 30, step, draws=3).law

    once = jax.jit(chex.assert_max_traces(run, n=1))
    alone = [once(key, p, s) for p, s in zip(precisions, (0.1, 0.2), strict=True)]
    together = jax.vmap(run, (None, 0, 0))(key, precisions, jnp.array([0.1, 0.2]))
    for i, law in enumerate(alone):
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], together), law, atol=1e-5)


class Whole:
    """A density of whole numbers."""

    dim = 2

    def log_prob(self, z):
        return jnp.round(z[0]).astype(jnp.int32)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"step": 0.0}, ValueError, "step must be positive"),
        ({"step": jnp.ones(3)}, ValueError, "step must have shape"),
        ({"steps": 0}, ValueError, "steps must be"),
        ({"draws": 0}, ValueError, "draws must be"),
        ({"start": start(3)}, ValueError, "start must have shape"),
        ({"target": object()}, TypeError, "no log_prob"),
        ({"target": Whole()}, TypeError, "has no gradient"),
    ],
)
def test_what_is_wrong_is_said(key, change, error, message):
    given = {
        "key": key,
        "target": normal(np.zeros(2, np.float32), jnp.eye(2)),
        "start": start(2),
        "steps": 2,
        "step": 0.1,
    } | change
    with pytest.raises(error, match=message):
        vi.forward_backward(**given)
    with pytest.raises(ValueError, match="use fewer points"):
        vi.gauss_hermite(9)(key, 9)
