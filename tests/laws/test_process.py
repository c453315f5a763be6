"""The laws of a process: every schedule joins here, with white and with coloured noise."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process


def _power(t):
    return 1 - t**1.5


def _sine(t):
    return jnp.cos(t)


def _square(t):
    return t * (1 + t)


SD_BETAS = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
SCHEDULES = {
    "cosine": lambda: process.cosine(),
    "linear_beta": lambda: process.linear_beta(),
    "betas": lambda: process.betas(SD_BETAS),
    "variance_preserving": lambda: process.variance_preserving(_power),
    "variance_exploding": lambda: process.variance_exploding(),
    "edm": lambda: process.edm(),
    "linear_interpolation": lambda: process.linear_interpolation(),
    "custom": lambda: process.custom(_sine, _square),
    "zero_terminal_snr": lambda: process.zero_terminal_snr(process.linear_beta()),
    "zero_terminal_betas": lambda: process.zero_terminal_snr(process.betas(SD_BETAS)),
}
NOT_PRESERVING = {"variance_exploding", "edm", "linear_interpolation", "custom"}
COVARIANCE = np.array([[1.0, 0.6, 0.2], [0.6, 1.5, -0.3], [0.2, -0.3, 0.7]])
NOISES = {"white": lambda: core.white(), "coloured": lambda: core.dense(jnp.asarray(COVARIANCE))}
PREDICTIONS = {
    "x0": process.x0,
    "eps": process.eps,
    "v": process.v,
    "score": process.score,
    "velocity": process.velocity,
    "preconditioned": process.preconditioned(0.5),
}

schedules = pytest.mark.parametrize("name", SCHEDULES)
noises = pytest.mark.parametrize("noise", NOISES)


def make(name, noise="white"):
    return process.gaussian(SCHEDULES[name](), NOISES[noise]())


def inner_times(p, count=5):
    """Times away from the ends, and off the table's knots where a schedule has one."""
    return jnp.asarray(p.t_min + (p.t_max - p.t_min) * (np.arange(count) + 0.5137) / (count + 0.3))


def mixture():
    return core.mixture(
        jnp.array([0.3, 0.7]),
        jnp.array([[1.0, -0.5, 0.2], [-0.7, 0.4, 1.1]]),
        jnp.array([0.3, 0.8]),
    )


@schedules
def test_alpha_and_sigma_run_from_data_to_noise(name, x64):
    """At t = 0 the data stand alone; the ratio of signal to noise falls, finite at the ends."""
    p = make(name)
    assert float(p.sigma(0.0)) == 0.0
    np.testing.assert_allclose(float(p.alpha(0.0)), 1.0, atol=1e-12)
    times = jnp.linspace(p.t_min, p.t_max, 50)
    ratios = jax.vmap(p.log_snr)(jnp.concatenate([jnp.zeros(1), times]))
    assert bool(jnp.all(jnp.isfinite(ratios)))
    assert bool(jnp.all(jnp.diff(ratios) < 0))


@pytest.mark.parametrize(
    "name",
    [name for name in SCHEDULES if name not in NOT_PRESERVING],
)
def test_variance_is_preserved(name, x64):
    """alpha^2 + sigma^2 = 1 where the schedule says so."""
    p = make(name)
    for t in inner_times(p):
        np.testing.assert_allclose(p.alpha(t) ** 2 + p.sigma(t) ** 2, 1, rtol=1e-12)


@schedules
def test_transitions_compose(name, x64):
    """Going from r to s and on to t is going from r to t: scales multiply, variances add."""
    p = make(name)
    r, s, t = inner_times(p)[:3]
    (a1, b1), (a2, b2), (a, b) = p.transition(r, s), p.transition(s, t), p.transition(r, t)
    np.testing.assert_allclose(a1 * a2, a, rtol=1e-12)
    np.testing.assert_allclose((a2 * b1) ** 2 + b2**2, b**2, rtol=1e-9)


@schedules
@noises
def test_marginal_is_the_pushed_law(name, noise, x64):
    """Pushing the marginal at s through the transition to t gives the marginal at t."""
    p, law = make(name, noise), mixture()
    s, t = inner_times(p)[1:3]
    a, b = p.transition(s, t)
    pushed = p.marginal(law, s).noised(a, p.covariance.scaled(b))
    x = jnp.array([0.3, -0.2, 0.5])
    np.testing.assert_allclose(pushed.log_prob(x), p.marginal(law, t).log_prob(x), rtol=1e-10)


@schedules
@noises
def test_fokker_planck(name, noise, x64):
    """The marginals solve d_t p = -div(f x p) + g^2/2 div(C grad p); the residual is rounding."""
    p, law = make(name, noise), mixture()
    factor = np.linalg.cholesky(COVARIANCE) if noise == "coloured" else np.eye(3)
    c = jnp.asarray(factor @ factor.T)

    def residual(x, t):
        def log_p(x, t):
            return p.marginal(law, t).log_prob(x)

        rate = jax.grad(log_p, 1)(x, t)
        slope, curve = jax.grad(log_p)(x, t), jax.hessian(log_p)(x, t)
        f, g2 = p.drift(t), p.dispersion_squared(t)
        flow = -(f * x.size + f * x @ slope)
        spread = g2 / 2 * (jnp.trace(c @ curve) + slope @ c @ slope)
        scale = jnp.abs(rate) + jnp.abs(flow) + jnp.abs(spread)
        return (rate - flow - spread) / scale

    for t in inner_times(p):
        x = p.alpha(t) * jnp.array([0.3, -0.2, 0.5]) + p.sigma(t) * jnp.array([0.4, 1.1, -0.6])
        assert abs(float(residual(x, t))) < 1e-10


@schedules
@noises
def test_probability_flow_carries_the_marginals(name, noise, x64):
    """Continuity: d_t log p = -div u - u . grad log p, for u the perfect denoiser's velocity."""
    p, law = make(name, noise), mixture()

    def velocity(x, t):
        return process.convert(p, t, x, p.posterior_mean(law, x, t))

    for t in inner_times(p):
        x = p.alpha(t) * jnp.array([0.3, -0.2, 0.5]) + p.sigma(t) * jnp.array([0.4, 1.1, -0.6])
        rate = jax.grad(lambda t, x=x: p.marginal(law, t).log_prob(x))(t)
        slope = jax.grad(lambda x, t=t: p.marginal(law, t).log_prob(x))(x)
        u, divergence = velocity(x, t), jnp.trace(jax.jacfwd(velocity)(x, t))
        scale = jnp.abs(rate) + jnp.abs(divergence) + jnp.abs(u @ slope)
        assert abs(float((rate + divergence + u @ slope) / scale)) < 1e-9


@schedules
@noises
def test_the_posterior_mean_minimises_the_loss(name, noise, x64):
    """E[(x_0 - D(x_t)) h(x_t)] = 0 for every h: here h = 1 and h = x_t, |z| < 4."""
    p, law = make(name, noise), mixture()
    t = inner_times(p)[2]

    def one(key):
        draw, noise = jax.random.split(key)
        x0 = law.sample(draw)
        x, _ = p.perturb(x0, jax.random.normal(noise, x0.shape), t)
        error = x0 - p.posterior_mean(law, x, t)
        return jnp.concatenate([error, error * x])

    moments = jax.vmap(one)(jax.random.split(jax.random.key(1), 4000))
    z = jnp.mean(moments, 0) / (jnp.std(moments, 0) / jnp.sqrt(moments.shape[0]))
    assert float(jnp.max(jnp.abs(z))) < 4


@schedules
@noises
def test_conversions(name, noise, x64):
    """Every prediction determines every other: the table against F = a x_0 + b e, to rounding."""
    p = make(name, noise)
    clean, z = jnp.array([0.7, -1.1, 0.2]), jnp.array([0.4, 1.3, -0.8])

    @jax.jit
    def table(t):
        x, e = p.perturb(clean, z, t)
        truth = {name: kind.encode(p, t, clean, e) for name, kind in PREDICTIONS.items()}
        pairs = itertools.permutations(PREDICTIONS, 2)
        return truth, {
            (a, b): process.convert(p, t, x, truth[a], PREDICTIONS[a], PREDICTIONS[b])
            for a, b in pairs
        }

    for t in inner_times(p, 3):
        truth, got = table(t)
        size = 1 + float(p.sigma(t) / p.alpha(t)) + float(p.alpha(t) / p.sigma(t))
        for (a, b), value in got.items():
            tolerance = 1e-14 * size * (1 + float(jnp.max(jnp.abs(truth[a]))))
            bound = tolerance * (1 + float(jnp.max(jnp.abs(truth[b]))))
            np.testing.assert_allclose(value, truth[b], atol=bound, err_msg=f"{a} to {b} at {t}")


@schedules
@pytest.mark.parametrize("kind", PREDICTIONS)
def test_weights_are_the_squared_slopes(name, kind, x64):
    """A prediction's weight is (dF / dx_0)^2 at fixed x_t, by differentiation of its encoding."""
    p, prediction = make(name), PREDICTIONS[kind]
    x, clean = jnp.array(0.3), jnp.array(0.7)
    for t in inner_times(p, 3):

        def encoded(clean, t=t):
            return prediction.encode(p, t, clean, (x - p.alpha(t) * clean) / p.sigma(t))

        np.testing.assert_allclose(
            prediction.weight(p, t), jax.grad(encoded)(clean) ** 2, rtol=1e-11
        )


@schedules
@pytest.mark.parametrize("end", ["zero", "first", "last"])
def test_conversions_are_finite_and_exact_at_both_ends(name, end):
    """In float32, at 0, t_min and t_max: all finite, and exact where the source has the answer."""
    p = make(name)
    t = jnp.float32({"zero": 0.0, "first": p.t_min, "last": p.t_max}[end])
    clean, z = jnp.array([0.7, -1.1, 0.2]), jnp.array([0.4, 1.3, -0.8])
    x, e = p.perturb(clean, z, t)
    informative = {"v", "velocity", "preconditioned"}
    for (s, source), (w, target) in itertools.product(PREDICTIONS.items(), repeat=2):
        if end == "zero" and "velocity" in (s, w):
            continue  # sigma' may be infinite at 0; velocities belong to [t_min, t_max]
        given = source.encode(p, t, clean, e)
        got = process.convert(p, t, x, given, source, target)
        assert bool(jnp.all(jnp.isfinite(got))), (s, w)
        if s in informative and w in {"x0", "eps", "v", "preconditioned"}:
            wanted = target.encode(p, t, clean, e)
            scale = float(jnp.max(jnp.abs(wanted))) + float(jnp.max(jnp.abs(x)))
            np.testing.assert_allclose(got, wanted, atol=2e-5 * scale, err_msg=f"{s} to {w}")


def test_another_process_compiles_nothing():
    """A record built anew with other numbers runs the compiled program."""

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(p, t):
        return p.log_snr(t) + p.prior().log_prob(jnp.zeros(3))

    for t_max in (1.0, 0.9):
        p = process.gaussian(process.linear_beta(0.1 * t_max, 20.0, t_max=t_max))
        run(p, 0.3)


@noises
def test_composes_under_shard_map_and_grad(noise):
    """The process under jit(shard_map(vmap)) on eight devices equals the plain call, grad runs."""
    p, law = make("cosine", noise), mixture()
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jax.random.normal(jax.random.key(0), (16, 3))

    def mean(x):
        return jax.vmap(lambda x: p.posterior_mean(law, x, jnp.float32(0.4)))(x)

    spec = PartitionSpec("data")
    sharded = jax.jit(jax.shard_map(mean, mesh=mesh, in_specs=spec, out_specs=spec))(x)
    np.testing.assert_allclose(sharded, mean(x), atol=1e-6)
    gradient = jax.grad(lambda p: jnp.sum(p.posterior_mean(law, x[0], jnp.float32(0.4))))(p)
    chex.assert_tree_all_finite(gradient)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_composes_under_pmap():
    """The process under pmap."""
    p, law = make("cosine"), mixture()
    x = jax.random.normal(jax.random.key(0), (8, 3))
    out = jax.pmap(lambda x: p.posterior_mean(law, x, jnp.float32(0.4)))(x)
    chex.assert_shape(out, (8, 3))


def test_a_law_per_sample_is_prefix_stable(key):
    """Example i of the prior is the same whatever the batch, with the process's variance.

    To rounding: how a product of matrices is summed depends on its size.
    """
    p = make("custom", "coloured")  # t_max = 1 and sigma(1) = 2
    small, large = p.prior().sample(key, (3, 3)), p.prior().sample(key, (4000, 3))
    np.testing.assert_allclose(small, large[:3], rtol=1e-5, atol=1e-6)
    products = large[:, :, None] * large[:, None, :] / 2.0**2
    z = (products.mean(0) - COVARIANCE) / (products.std(0) / np.sqrt(4000))
    assert float(jnp.max(jnp.abs(z))) < 4


def test_the_priors_density_is_that_of_the_last_noise(x64):
    """N(0, sigma(t_max)^2 C) at one example."""
    x = jnp.array([0.3, -0.2, 1.5])
    wanted = core.gaussian(jnp.zeros(3), core.dense(4 * jnp.asarray(COVARIANCE))).log_prob(x)
    np.testing.assert_allclose(make("custom", "coloured").prior().log_prob(x), wanted, rtol=1e-12)
