"""Denoisers: a network's, the perfect one, and how all of them compose."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec
from score_models import COVARIANCE, dense_gaussian, three_modes

from jaxinf import core, process, sampler, score

SD_BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SCHEDULES = {
    "cosine": lambda: process.cosine(),
    "linear_beta": lambda: process.linear_beta(),
    "betas": lambda: process.betas(SD_BETAS),
    "variance_exploding": lambda: process.variance_exploding(),
    "edm": lambda: process.edm(),
    "linear_interpolation": lambda: process.linear_interpolation(),
    "zero_terminal_snr": lambda: process.zero_terminal_snr(process.linear_beta()),
}
X = jnp.array([0.7, -1.1])


def _network(params, x, t, cond):
    return jnp.tanh(params * x + t) + (0.0 if cond is None else cond)


def network(schedule, predicts=score.v, params=0.5):
    """A small network on a schedule."""
    p = process.gaussian(SCHEDULES[schedule]())
    return score.denoiser(p, _network, jnp.float32(params), predicts=predicts)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_networks_time(name):
    """The noise level is log(sigma / alpha) / 4 between its cuts at 2.5, finite and rising."""
    p = process.gaussian(SCHEDULES[name]())
    ends = [score.noise_level(p, jnp.float32(t)) for t in (0.0, p.t_min, p.t_max)]
    assert np.all(np.abs(ends) <= 2.5)
    assert ends[0] < ends[1] < ends[2]
    t = jnp.float32(0.3 * p.t_max)
    wanted = np.log(float(p.sigma(t)) / float(p.alpha(t))) / 4
    # four roundings in numbers of order one
    np.testing.assert_allclose(score.noise_level(p, t), wanted, atol=1e-6)


def test_edms_time_is_c_noise(x64):
    """EDM, table 1: c_noise = log(sigma) / 4 over its whole range."""
    p = process.gaussian(process.edm())
    for sigma in np.geomspace(0.002, 80, 9):
        np.testing.assert_allclose(score.noise_level(p, sigma), np.log(sigma) / 4, rtol=1e-13)


@pytest.mark.parametrize("name", SCHEDULES)
def test_both_ends_of_time(name):
    """Without noise the clean example is x_0 = x; at t_min and t_max it is finite."""
    for predicts in (score.v, score.preconditioned(0.5)):
        denoiser = network(name, predicts)
        np.testing.assert_allclose(denoiser(X, jnp.float32(0.0)), X, rtol=1e-6)
        for t in (denoiser.process.t_min, denoiser.process.t_max):
            assert bool(jnp.all(jnp.isfinite(denoiser(X, jnp.float32(t)))))
    assert np.all(np.isfinite(network(name, score.velocity)(X, jnp.float32(1.0))))


def test_a_network_sees_a_scaled_example(x64):
    """Its input is x / sqrt(alpha^2 d^2 + sigma^2), and D = c_skip x + c_out F (EDM, table 1)."""
    d, sigma = 0.5, 0.3
    p = process.gaussian(process.edm())
    denoiser = score.denoiser(p, _network, jnp.asarray(0.5), predicts=score.preconditioned(d))
    x = X.astype(float)
    total = np.sqrt(sigma**2 + d**2)
    out = np.tanh(0.5 * x / total + np.log(sigma) / 4)
    wanted = d**2 / total**2 * x + sigma * d / total * out
    np.testing.assert_allclose(denoiser(x, jnp.asarray(sigma)), wanted, rtol=1e-12)
    np.testing.assert_allclose(denoiser.output(x, jnp.asarray(sigma)), out, rtol=1e-12)


def test_the_oracle_is_the_posterior_mean(x64):
    """On the line E[x_0 | x_t] by quadrature of the data's law against the noise's density."""
    weights, means, scales = np.array([0.4, 0.6]), np.array([-1.0, 1.2]), np.array([0.4, 0.7])
    law = core.mixture(jnp.asarray(weights), jnp.asarray(means[:, None]), jnp.asarray(scales))
    clean = np.linspace(-9, 9, 4001)
    prior = np.exp(-0.5 * ((clean[:, None] - means) / scales) ** 2) / scales @ weights
    p = process.gaussian(process.cosine())
    oracle = score.oracle(p, law)
    for t in (0.1, 0.5, 0.9):
        alpha, sigma = np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
        for x in (-1.3, 0.05, 0.8):
            joint = prior * np.exp(-0.5 * ((x - alpha * clean) / sigma) ** 2)
            wanted = np.sum(joint * clean) / np.sum(joint)
            np.testing.assert_allclose(oracle(jnp.full(1, x), t), wanted, rtol=1e-10)


@pytest.mark.parametrize("coloured", [False, True])
def test_the_oracle_of_a_gaussian(coloured, x64):
    """E[x_0 | x_t] = m + alpha S (alpha^2 S + sigma^2 C)^-1 (x_t - alpha m)."""
    c = np.diag([0.5, 1.0, 2.0]) + 0.2 if coloured else np.eye(3)
    p = process.gaussian(process.linear_interpolation(), core.dense(jnp.asarray(c)))
    oracle, mean = score.oracle(p, dense_gaussian()), np.array([0.5, -0.3, 0.2])
    mean = mean.astype(np.float64)
    x, t = np.array([0.4, 1.0, -0.8]), 0.35
    alpha, sigma = 1 - t, t
    gain = alpha * COVARIANCE @ np.linalg.inv(alpha**2 * COVARIANCE + sigma**2 * c)
    wanted = mean + gain @ (x - alpha * mean)
    np.testing.assert_allclose(oracle(jnp.asarray(x), t), wanted, rtol=1e-10)


@pytest.mark.parametrize("name", ["cosine", "edm"])
@pytest.mark.parametrize("law", [three_modes, dense_gaussian])
def test_tweedie(name, law, x64):
    """E[x_0 | x_t = x] = (x + sigma^2 grad log p_t(x)) / alpha."""
    p, law = process.gaussian(SCHEDULES[name]()), law()

    @jax.jit
    def both(x, t):
        slope = jax.grad(p.marginal(law, t).log_prob)(x)
        return score.oracle(p, law)(x, t), (x + p.sigma(t) ** 2 * slope) / p.alpha(t)

    for t in (0.2, 0.7):
        mean, wanted = both(jnp.linspace(-1.0, 1.5, law.sample(jax.random.key(0)).size), t)
        np.testing.assert_allclose(mean, wanted, rtol=0, atol=1e-10)


def test_another_denoiser_compiles_nothing():
    """Denoisers built anew with other numbers run the compiled program."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(denoiser, x, t):
        return denoiser(x, t)

    results = []
    for number in (0.3, 0.4):
        p = process.gaussian(process.linear_beta(number))
        predicts = score.preconditioned(number)
        denoiser = score.denoiser(p, _network, jnp.float32(number), predicts=predicts)
        results.append(run(denoiser, X, jnp.float32(0.5)))
    assert not np.allclose(*results)


def _short(params, x, t, cond):
    return x[:1]


def test_bad_denoisers_name_their_mend():
    """Predictions that say nothing where alpha is 0, and networks of another shape."""
    for name in ("cosine", "linear_interpolation", "zero_terminal_snr"):
        for predicts in (score.eps, score.score):
            with pytest.raises(ValueError, match=r"take process\.v.*t_max"):
                network(name, predicts)
    p = process.gaussian(process.cosine())
    with pytest.raises(ValueError, match="for one example, without a batch axis"):
        score.denoiser(p, _short, None, predicts=score.v)(X, jnp.float32(0.5))


def _calibrated():
    model = network("cosine")
    times, table = jnp.array([0.2, 0.9]), jnp.arange(8.0).reshape(2, 2, 2)
    return score.Calibrated(model, times, table, True)


DENOISERS = {
    "network": (lambda: network("cosine"), jnp.linspace(0.0, 1.0, 16)),
    "oracle": (lambda: score.oracle(process.gaussian(process.edm()), three_modes()), None),
    "guided": (
        lambda: score.guided(
            network("linear_beta", score.eps), 2.0, null=0.0, rescale=0.7, interval=(0.1, 0.9)
        ),
        jnp.linspace(0.0, 1.0, 16),
    ),
    "calibrated": (_calibrated, jnp.arange(16) % 2),
}


@pytest.mark.parametrize("name", DENOISERS)
def test_composes_under_shard_map_and_grad(name):
    """Under jit(shard_map(vmap)) on eight devices it is the plain call; gradients are finite."""
    make, cond = DENOISERS[name]
    denoiser = make()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x, t = jnp.linspace(-2.0, 2.0, 32).reshape(16, 2), jnp.float32(0.4)

    def clean(denoiser, x, cond):
        return jax.vmap(lambda x, cond: denoiser(x, t, cond))(x, cond)

    split, whole = PartitionSpec("data"), PartitionSpec()
    sharded = jax.shard_map(clean, mesh=mesh, in_specs=(whole, split, split), out_specs=split)
    out = jax.jit(sharded)(denoiser, x, cond)

    def energy(denoiser, x):
        plain = clean(denoiser, x, cond)
        return jnp.sum(plain**2), plain

    gradients, plain = jax.jit(jax.grad(energy, (0, 1), has_aux=True))(denoiser, x)
    np.testing.assert_allclose(out, plain, rtol=1e-5, atol=1e-6)
    chex.assert_tree_all_finite(gradients)
    assert all(float(jnp.max(jnp.abs(g))) > 0 for g in jax.tree.leaves(gradients[1]))
    if hasattr(denoiser, "params"):
        assert float(jnp.abs(gradients[0].params)) > 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_composes_under_pmap():
    """A denoiser under pmap."""
    denoiser, x = network("cosine"), jnp.linspace(-2.0, 2.0, 16).reshape(8, 2)
    out = jax.pmap(lambda x: denoiser(x, jnp.float32(0.4)))(x)
    np.testing.assert_allclose(out, denoiser(x, jnp.float32(0.4)), rtol=1e-5)


def test_losses_and_likelihoods_compose_under_shard_map(key):
    """Sharded over eight devices, equal examples have equal losses, log densities and bounds."""
    denoiser = network("cosine")
    p = denoiser.process
    plan = sampler.uniform(p, 2, end=p.t_min)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def run(denoiser, x):
        loss = score.denoising(p, _network, target=score.v)
        losses = loss(denoiser.params, key, (x, None))[1].loss
        density, _ = score.log_density(key, denoiser, x, plan=plan)
        bound = score.variational_bound(key, denoiser, x, plan=plan)
        return losses, density, bound.total

    split = PartitionSpec("data")
    sharded = jax.shard_map(run, mesh=mesh, in_specs=(PartitionSpec(), split), out_specs=split)
    for values in jax.jit(sharded)(denoiser, jnp.tile(X, (8, 1))):
        assert bool(jnp.all(jnp.isfinite(values)))
        np.testing.assert_allclose(values, float(values[0]), rtol=1e-6)
