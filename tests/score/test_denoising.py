"""The loss: its minimiser, its weights, its times, and what it refuses."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from score_models import (
    TARGETS,
    denoiser_network,
    linear_network,
    oracle_network,
    plane,
    three_modes,
    z_score,
)

from jaxinf import core, process, score
from jaxinf.score.times import stratified

SCHEDULES = {
    "cosine": lambda: process.cosine(t_min=0.02, t_max=0.98),
    "linear_beta": lambda: process.linear_beta(t_min=0.02),
    "edm": lambda: process.edm(0.05, 10.0),
    "linear_interpolation": lambda: process.linear_interpolation(t_min=0.02, t_max=0.98),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


COUNT = 4096  # everywhere the same, so that what is not compiled as a whole is compiled once


@schedules
@pytest.mark.parametrize("target", TARGETS)
def test_the_oracle_minimises_the_loss(name, target, x64, key):
    """E[F | x_t] is stationary: the loss at a F + b has gradient zero in (a, b) at (1, 0).

    It is zero at each time apart, so the examples' gradients are independent with mean zero.
    """
    p, law, target = process.gaussian(SCHEDULES[name]()), three_modes(), TARGETS[target]
    loss = score.denoising(p, oracle_network, target=target, times=score.log_uniform())

    def losses(ab):
        return loss((ab[0], ab[1], p, law, target), key, score.Batch(plane(COUNT)))[1].loss

    z = z_score(jax.jacfwd(losses)(jnp.array([1.0, 0.0])), 0.0)
    assert np.all(np.abs(z) < 4), z


def test_a_prediction_as_weight_is_the_loss_on_that_prediction(x64, key):
    """Target A weighted by B is target B unweighted, example by example, up to rounding."""
    p, x = process.gaussian(SCHEDULES["linear_beta"]()), plane(COUNT)

    def losses(target, weight):
        loss = score.denoising(p, linear_network, target=TARGETS[target], weight=weight)
        return loss((0.8, 0.3, p, TARGETS[target]), key, score.Batch(x))[1].loss

    plain = {name: losses(name, None) for name in TARGETS if name != "score"}
    # a prediction from another loses digits like r = sigma / alpha or 1 / r, and r is at most 170;
    # there the error in the clean example is 1e-2 or more for all but one example in a hundred
    for a, b in itertools.permutations(plain, 2):
        apart = np.abs(losses(a, TARGETS[b]) / plain[b] - 1)
        assert np.quantile(apart, 0.99) < 4 * 170 / 1e-2 * np.finfo(float).eps, (a, b)


def _half(params, x, t, cond):
    return params * x


def _per_example(p, target, weight):
    loss = score.denoising(p, _half, target=target, weight=weight)
    return loss(0.5, jax.random.key(4), score.Batch(plane(COUNT)))[1]


def test_min_snr_is_the_papers_weight(x64):
    """Min-SNR, equation 8: a loss on the noise is weighted by min(SNR, gamma) / SNR."""
    p = process.gaussian(process.linear_beta())
    weighted, plain = (_per_example(p, score.eps, w) for w in (score.min_snr(5.0), None))
    ratio = jnp.exp(jax.vmap(p.log_snr)(plain.t))
    assert float(jnp.min(ratio)) < 5 < float(jnp.max(ratio))
    wanted = jnp.minimum(ratio, 5.0) / ratio
    np.testing.assert_allclose(weighted.loss / plain.loss, wanted, rtol=1e-12)


def test_edms_weight(x64):
    """EDM, table 1: lambda(sigma) = (sigma^2 + d^2) / (sigma d)^2 on the clean example's error."""
    p, d = process.gaussian(process.edm()), 0.5
    weighted = _per_example(p, score.x0, score.preconditioned(d))
    plain = _per_example(p, score.x0, None)
    wanted = (plain.t**2 + d**2) / (plain.t * d) ** 2
    np.testing.assert_allclose(weighted.loss / plain.loss, wanted, rtol=1e-13)


@pytest.mark.parametrize(
    ("target", "times"),
    [
        (score.v, score.uniform()),
        (score.eps, score.log_uniform()),
        (score.x0, score.logit_normal(0.0, 1.7)),
    ],
)
def test_the_likelihood_weight_gives_the_bound_whatever_the_times(target, times, x64, key):
    """Its loss is 1/2 int -SNR' mmse dt a dimension: 1/2 log of (1 + s^2 SNR) at the two ends.

    The times of a batch are stratified, which leaves its mean a smaller error than the one taken.
    """
    p, scale = process.gaussian(process.cosine(t_min=0.05, t_max=0.95)), 0.7
    law = core.gaussian(jnp.zeros(2), core.Diagonal(jnp.full(2, scale)))
    first, last = (float(jnp.exp(p.log_snr(t))) for t in (p.t_min, p.t_max))
    wanted = 0.5 * np.log((1 + scale**2 * first) / (1 + scale**2 * last))
    loss = score.denoising(
        p, denoiser_network, target=target, weight=score.likelihood(), times=times
    )
    x = scale * np.random.default_rng(7).normal(size=(COUNT, 2))
    losses = loss((1.0, 0.0, p, law, target), key, score.Batch(jnp.asarray(x)))[1].loss
    assert abs(z_score(losses, wanted)) < 4
    assert np.std(losses) / np.sqrt(COUNT) < 0.05 * wanted


TIMES = {
    "uniform": (score.uniform(), lambda p, t: (t - p.t_min) / (p.t_max - p.t_min)),
    "log_uniform": (
        score.log_uniform(),
        lambda p, t: jnp.log(t / p.t_min) / jnp.log(p.t_max / p.t_min),
    ),
    "log_normal": (
        score.log_normal(-1.2, 1.2),
        lambda p, t: jax.scipy.stats.norm.cdf((jnp.log(t) + 1.2) / 1.2),
    ),
    "logit_normal": (
        score.logit_normal(0.3, 0.8),
        lambda p, t: jax.scipy.stats.norm.cdf((jax.scipy.special.logit(t / p.t_max) - 0.3) / 0.8),
    ),
}


@pytest.mark.parametrize("name", TIMES)
def test_times_have_their_law_and_cover_it_evenly(name, x64):
    """One time of each batch has the stated law (Kolmogorov-Smirnov); each stratum holds one."""
    times, cdf = TIMES[name]
    p = process.gaussian(process.edm(1e-4, 500.0))
    keys = jax.random.split(jax.random.key(6), 2000)
    t, rate = jax.jit(jax.vmap(lambda key: stratified(key, times, p, 7, jnp.dtype(float))))(keys)
    u = cdf(p, t)
    # P(sup |F_n - F| sqrt(n) > 2.2) = 2 exp(-2 * 2.2^2) = 1e-4
    n, sorted_u = len(keys), np.sort(u[:, 3])
    distance = np.max(np.abs(sorted_u - (np.arange(n) + 0.5) / n)) + 0.5 / n
    assert distance * np.sqrt(n) < 2.2
    np.testing.assert_array_equal(np.sort(np.floor(u * 7), axis=1), np.tile(np.arange(7.0), (n, 1)))
    density = jax.vmap(jax.grad(lambda t: cdf(p, t)))(t.ravel())
    np.testing.assert_allclose(rate.ravel() * density, 1.0, rtol=1e-7)


def _total(params, x, t, cond):
    return jnp.full_like(x, jnp.sum(cond["text"]) + cond["label"])


def test_conditions_are_dropped_whole_and_as_often_as_said(x64, key):
    """Each condition is its own or the null, all leaves together; the null with probability p."""
    count, drop = COUNT, 0.3
    cond = {"label": jnp.ones(count, int), "text": jnp.full((count, 2), 2.0)}
    null = {"label": 10, "text": jnp.full(2, -1.0)}
    p = process.gaussian(process.cosine())
    loss = score.denoising(p, _total, target=score.x0, drop=drop, null=null)
    losses = np.asarray(loss(None, key, (jnp.zeros((count, 2)), cond))[1].loss)
    assert set(losses) == {25.0, 64.0}  # (1 + 2 + 2)^2 and (10 - 1 - 1)^2
    z = (np.mean(losses == 64.0) - drop) / np.sqrt(drop * (1 - drop) / count)
    assert abs(z) < 4


def _straight_path(params, x, level, cond):
    t = jnp.exp(4 * level) / (1 + jnp.exp(4 * level))
    noisy = x * jnp.sqrt((1 - t) ** 2 + t**2)
    return params[0] * (noisy - cond) / t + params[1]


def test_velocity_is_flow_matching(x64, key):
    """On the straight path the loss is |net - (e - x_0)|^2 at x_t = (1 - t) x_0 + t e, literally.

    A network that is told x_0 knows e - x_0 = (x_t - x_0) / t, so an offset c costs c^2 exactly;
    one that returns 0 pays E|e - x_0|^2 = 1 + x_0^2.
    """
    p = process.gaussian(process.linear_interpolation(t_max=0.999))
    x = jnp.full((COUNT, 2), 0.6)
    loss = score.denoising(p, _straight_path, target=score.velocity)
    # (x_t - x_0) / t amplifies rounding by 1 / t <= 1000, and 0.7^2 by a few roundings more
    offset = loss((1.0, 0.7), key, (x, x))[1]
    np.testing.assert_allclose(offset.loss, 0.49, rtol=1e4 * np.finfo(float).eps)
    nothing = loss((0.0, 0.0), key, (x, x))[1]
    assert abs(z_score(nothing.loss, 1.36)) < 4


def test_another_loss_compiles_nothing(key):
    """A loss built anew with other numbers runs the compiled program."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(loss, params, key, batch):
        return loss(params, key, batch)[0]

    for number in (0.1, 0.2):
        p = process.gaussian(process.linear_beta(number, 20.0 - number))
        loss = score.denoising(
            p,
            _half,
            target=score.preconditioned(0.5 + number),
            weight=score.min_snr(5 + number),
            times=score.logit_normal(number),
            drop=number,
            null=3,
        )
        step(loss, number, key, (jnp.ones((4, 2)), jnp.arange(4)))


def test_bad_losses_name_their_mend():
    """What is wrong with a loss's numbers is said when it is built."""
    p = process.gaussian(process.cosine())
    with pytest.raises(ValueError, match=r"take process\.v"):
        score.denoising(p, _half, target=score.eps)
    with pytest.raises(ValueError, match="pass null=classes"):
        score.denoising(p, _half, target=score.v, drop=0.1)
    for drop in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"must lie in \[0, 1\]"):
            score.denoising(p, _half, target=score.v, drop=drop, null=1)
    for gamma in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="the paper's is 5"):
            score.min_snr(gamma)


def _short(params, x, t, cond):
    return x[:1]


BAD_BATCHES = {
    "bytes": ((jnp.zeros((2, 3), jnp.uint8), None), TypeError, r"data\.dequantise"),
    "empty": ((jnp.zeros((0, 3)), None), ValueError, r"x\[None\] makes"),
    "one number": ((jnp.float32(0.0), None), ValueError, r"x\[None\] makes"),
    "short condition": ((jnp.zeros((2, 3)), jnp.zeros(3)), ValueError, "leading axis 2"),
    "no pair": (jnp.zeros((2, 3)), TypeError, r"score\.Batch\(x\)"),
}


@pytest.mark.parametrize("name", BAD_BATCHES)
def test_bad_batches_name_their_mend(name, key):
    """What is wrong with a batch is said when the loss is called."""
    batch, kind, message = BAD_BATCHES[name]
    loss = score.denoising(process.gaussian(process.cosine()), _half, target=score.v)
    with pytest.raises(kind, match=message):
        loss(0.5, key, batch)


def test_a_raw_key_a_missing_condition_and_a_wrong_network_name_their_mend(key):
    """A raw key, no condition to drop, and a network of another shape."""
    p, batch = process.gaussian(process.cosine()), score.Batch(jnp.zeros((2, 3)))
    loss = score.denoising(p, _half, target=score.v)
    with pytest.raises(TypeError, match=r"jax\.random\.key\(seed\)"):
        loss(0.5, jax.random.PRNGKey(0), batch)
    with pytest.raises(ValueError, match="for one example, without a batch axis"):
        score.denoising(p, _short, target=score.v)(0.5, key, batch)
    with pytest.raises(ValueError, match="pass cond with the examples"):
        score.denoising(p, _half, target=score.v, drop=0.1, null=3)(0.5, key, batch)
