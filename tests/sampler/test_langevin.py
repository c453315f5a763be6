"""Predictor-corrector: a correction by hand, its law, its noise, and what may be wrapped."""

import dataclasses
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler, score
from jaxinf.sampler.bdia import bidirectional
from jaxinf.sampler.early_stopping import early_stopping
from jaxinf.sampler.langevin import predictor_corrector, stream

P = process.gaussian(process.cosine())
COVARIANCE = np.array([[1.0, 0.6], [0.6, 1.5]])
LAW = core.Gaussian(np.array([0.7, -0.2]), core.Diagonal(0.6))


@core.record
class Stay:
    """A predictor that does nothing."""

    process: core.Leaf

    def init(self, x):
        return sampler.State(x)

    def step(self, denoise, noise, state, t, s):
        return state, sampler.StepInfo(state.x)

    def calls(self, t, s):
        return 0


@core.record
class Given:
    """Noise that is z[0] for the step and z[1 + k] for its stream number k."""

    key: core.Leaf
    origin: core.Leaf
    z: core.Leaf

    def increment(self, t, s):
        keys = [jax.random.fold_in(self.origin, k) for k in range(self.z.shape[0] - 1)]
        words = jnp.stack([jax.random.key_data(key) for key in (self.origin, *keys)])
        hit = jnp.all(words == jax.random.key_data(self.key)[None], axis=1)
        return jnp.tensordot(hit.astype(self.z.dtype), self.z, 1)


def given(z):
    origin = jax.random.key(9)
    return Given(origin, origin, z)


@pytest.mark.parametrize("size", [{"snr": 0.2}, {"share": 0.3}, {"snr": 2.0}])
@pytest.mark.parametrize("make", [sampler.ddim, sampler.ancestral])
def test_a_step_is_the_predictors_and_then_the_papers(make, size, x64):
    """Algorithm 4 by hand, preconditioned by C: h = 2 (r |z| / |score|)^2 or share sigma^2."""
    p = process.gaussian(process.linear_beta(), core.dense(jnp.asarray(COVARIANCE)))
    denoiser, root = score.oracle(p, LAW), np.linalg.cholesky(COVARIANCE)
    x, t, s = jnp.array([-0.3, 1.1]), jnp.asarray(0.6), jnp.asarray(0.4)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 2)))

    @jax.jit
    def step(stepper, z):
        return stepper.step(denoiser, given(z), sampler.State(x), t, s)

    new, info = step(make(p), z[:1])
    wanted, slope_at = np.asarray(new.x), jax.jit(jax.grad(p.marginal(LAW, s).log_prob))
    for draw in np.asarray(z[1:]):
        slope = np.asarray(slope_at(wanted))
        if "share" in size:
            h = size["share"] * p.sigma(s) ** 2
        else:
            h = 2 * (size["snr"] * np.linalg.norm(draw) / np.linalg.norm(root.T @ slope)) ** 2
            h = min(h, p.sigma(s) ** 2)
        wanted = wanted + h * COVARIANCE @ slope + np.sqrt(2 * h) * root @ draw
    got, told = step(predictor_corrector(make(p), 3, **size), z)
    np.testing.assert_allclose(got.x, wanted, rtol=1e-12)
    chex.assert_trees_all_equal(told, info)


def law_after(stepper, denoiser, mean, variance, t, s, corrections):
    """Mean and variance after one step, exactly: it is affine in x and in the draws."""

    @jax.jit
    def end(x, z):
        new, _ = stepper.step(denoiser, given(z), sampler.State(x), jnp.asarray(t), jnp.asarray(s))
        return ravel_pytree(new)[0]

    origin = jnp.zeros(1), jnp.zeros((1 + corrections, 1))
    shift = end(*origin)
    slope, spread = jax.jacfwd(end, (0, 1))(*origin)
    moved = slope[0, 0] * mean + shift[0]
    return float(moved), float(slope[0, 0] ** 2 * variance + jnp.sum(spread**2))


@pytest.mark.parametrize("make", [Stay, sampler.ddim, sampler.ancestral])
@pytest.mark.parametrize("corrections", [1, 3])
def test_what_is_off_shrinks_by_the_exact_factor(make, corrections, x64):
    """Of a wrong variance the distance to v / (1 - h / 2v) is (1 - h / v)^2K of the predictor's."""
    p, share, t, s = P, 0.3, 0.6, 0.4
    data = core.gaussian(jnp.array([0.7]), core.Diagonal(0.6))
    denoiser, marginal = score.oracle(p, data), p.marginal(data, s)
    v, h = float(marginal.covariance.scale**2), share * float(p.sigma(s)) ** 2
    mean, variance = law_after(make(p), denoiser, 0.4, 1.9, t, s, 0)
    stepper = predictor_corrector(make(p), corrections, share=share)
    got_mean, got = law_after(stepper, denoiser, 0.4, 1.9, t, s, corrections)
    limit = v / (1 - h / (2 * v))
    shrunk = (1 - h / v) ** corrections
    np.testing.assert_allclose(got - limit, shrunk**2 * (variance - limit), rtol=1e-10)
    centre = float(marginal.mean[0])
    np.testing.assert_allclose(got_mean - centre, shrunk * (mean - centre), rtol=1e-10)


@pytest.mark.parametrize("coloured", [False, True])
def test_the_papers_step_has_the_computed_second_moment(coloured, key):
    """From N(0, v I): E |x|^2 / v = d - 4 r^2 d + 4 r^2 (1 + r^2) d (d + 2) / (d - 2).

    By E |z|^2 = d, E |z|^4 = d (d + 2), E 1 / |x|^2 = 1 / (v (d - 2)); |z| < 4.
    """
    d, r, s, count = 16, 0.3, 0.5, 20_000
    factor = np.eye(d) + np.tril(np.full((d, d), 0.2)) if coloured else np.eye(d)
    covariance = core.Dense(jnp.asarray(factor, jnp.float32))
    p = process.gaussian(process.cosine(), covariance)
    denoiser = score.oracle(p, core.gaussian(jnp.zeros(d), covariance.scaled(0.6)))
    stepper = predictor_corrector(Stay(p), 1, snr=r)
    z = jax.random.normal(jax.random.key(1), (count, d))
    v = float((0.6 * p.alpha(s)) ** 2 + p.sigma(s) ** 2)
    x = math.sqrt(v) * z @ covariance.factor.T
    x = sampler.sample(key, stepper, denoiser, sampler.plan(p, [1.0, s]), x).x
    power = np.sum(np.asarray(jax.vmap(covariance.whiten)(x)) ** 2, axis=1)
    wanted = v * (d - 4 * r**2 * d + 4 * r**2 * (1 + r**2) * d * (d + 2) / (d - 2))
    z_score = (power.mean() - wanted) / (power.std() / math.sqrt(count))
    assert abs(z_score) < 4
    assert abs(v * d - wanted) / (power.std() / math.sqrt(count)) > 8


@core.record
class Recorded:
    """A noise that writes down what is drawn from it."""

    key: core.Leaf
    inner: core.Leaf
    write: object = core.static()

    def increment(self, t, s):
        z = dataclasses.replace(self.inner, key=self.key).increment(t, s)
        jax.debug.callback(lambda z: self.write(np.asarray(z)), z)
        return z


@pytest.mark.parametrize("kind", ["independent", "brownian"])
def test_no_two_draws_are_alike(kind):
    """Of four steps of two samples with three corrections each, 32 draws: none correlated."""
    times, key, size = jnp.linspace(0.9, 0.1, 5), jax.random.key(3), 1024
    denoiser, draws = score.oracle(P, core.gaussian(jnp.zeros(size), core.Diagonal(0.6))), []
    stepper = predictor_corrector(sampler.ancestral(P), 3, share=0.3)

    @jax.jit
    def step(i, index, t, s):
        make = core.Independent if kind == "independent" else core.brownian(P.t_max, 6).at
        noise = Recorded(key, make(key, i, index, (size,), jnp.float32), draws.append)
        stepper.step(denoiser, noise, sampler.State(jnp.zeros(size)), t, s)

    for index in range(2):
        for i in range(4):
            step(i, index, times[i], times[i + 1])
    jax.effects_barrier()
    assert len(draws) == 32
    correlations = np.corrcoef(np.stack(draws))[np.triu_indices(32, 1)]
    assert np.abs(correlations).max() * math.sqrt(size) < 4.5  # of 496 pairs: p = 0.003


def test_no_corrections_is_the_stepper_itself():
    """Also where the stepper could not be wrapped; calls are counted as they happen."""
    for make in (sampler.heun, sampler.unipc):
        assert predictor_corrector(make(P), 0) == make(P)
    stepper, plan, seen = predictor_corrector(sampler.heun(P), 2), sampler.uniform(P, 4), []

    def denoiser(x, t, cond=None):
        jax.debug.callback(lambda: seen.append(1))
        return 0.5 * x

    sampler.sample(
        jax.random.key(0), stepper, jax.tree_util.Partial(denoiser), plan, jnp.ones((1, 3))
    )
    jax.effects_barrier()
    assert len(seen) == plan.calls(stepper) == 2 * 3 + 2 * 3 + 1


def test_nothing_is_corrected_at_time_0(key):
    """A single step to time 0 is the predictor's; one to a later time is not."""
    denoiser, x = score.oracle(P, LAW), jnp.array([[0.3, -1.0]])
    stepper = predictor_corrector(sampler.ddim(P), 2)
    for end, same in ((0.0, True), (0.2, False)):
        plan = sampler.uniform(P, 1, end=end)
        one, two = (sampler.sample(key, s, denoiser, plan, x).x for s in (stepper, stepper.stepper))
        assert np.array_equal(one, two) == same


def test_a_multistep_method_goes_on_from_the_corrected_example(x64):
    """Its next step starts from x, not from what the last one left; its table is passed on."""
    p, inner = P, sampler.dpm_solver(P)
    stepper, times = predictor_corrector(inner, share=0.3), jnp.array([0.8, 0.6, 0.4])
    denoiser, rows = score.oracle(p, LAW), jax.jit(lambda stepper: stepper.table(times))(stepper)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(2, 2, 2)))
    state = wanted = stepper.init(jnp.array([0.5, -1.0]))

    @jax.jit
    def step(stepper, state, z, t, s, row):
        return stepper.step(denoiser, given(z), state, t, s, row)[0]

    for i in range(2):
        t, s, row = times[i], times[i + 1], jax.tree.map(lambda a, i=i: a[i], rows)
        state = step(stepper, state, z[i], t, s, row)
        wanted = step(inner, wanted, z[i], t, s, row)
        slope = jax.grad(p.marginal(LAW, s).log_prob)(wanted.x)
        h = 0.3 * p.sigma(s) ** 2
        wanted = wanted._replace(x=wanted.x + h * slope + jnp.sqrt(2 * h) * z[i, 1])
    np.testing.assert_allclose(state.x, wanted.x, rtol=1e-12)


def test_corrections_mend_euler_maruyama_on_a_mixture(key):
    """Ten steps, eight dimensions: two corrections a step halve the error of E x^2 at the least."""
    p = process.gaussian(process.cosine(t_max=0.99))
    weights, centres, widths = (
        np.array(a) for a in ([0.3, 0.5, 0.2], [-1.5, 0.5, 1.5], [0.3, 0.2, 0.4])
    )
    law = core.mixture(
        jnp.asarray(weights, jnp.float32),
        jnp.asarray(centres[:, None] * np.ones(8), jnp.float32),
        jnp.asarray(widths, jnp.float32),
    )
    denoiser, plan = score.oracle(p, law), sampler.uniform(p, 10, end=p.t_min)
    x = jax.vmap(p.marginal(law, p.t_max).sample)(jax.random.split(jax.random.key(2), 8000))
    wanted = weights @ (centres**2 + widths**2) * p.alpha(p.t_min) ** 2 + p.sigma(p.t_min) ** 2
    plain = sampler.euler_maruyama(p)
    errors = []
    for stepper in (plain, predictor_corrector(plain, 2, share=0.3)):
        power = np.mean(np.asarray(sampler.sample(key, stepper, denoiser, plan, x).x) ** 2, axis=1)
        errors.append(abs(power.mean() - wanted))
        noise = power.std() / math.sqrt(8000)
    assert errors[1] + 4 * noise < 0.7 * (errors[0] - 4 * noise)


def small(batch=8):
    p = process.gaussian(process.cosine(t_max=0.99))
    x = p.prior().sample(jax.random.key(5), (batch, 2))
    return p, score.oracle(p, LAW), sampler.uniform(p, 6), x


@pytest.mark.parametrize("size", [{"snr": 0.2}, {"share": 0.3}])
def test_it_composes(size, key):
    """Sample 0 sees no other; alone, under shard_map and in blocks it is itself; grad is finite."""
    p, denoiser, plan, x = small()
    stepper = predictor_corrector(sampler.ancestral(p), 2, **size)

    def run(x, index=None, stepper=stepper, **kwargs):
        return sampler.sample(key, stepper, denoiser, plan, x, index=index, **kwargs).x

    whole = run(x)
    np.testing.assert_array_equal(run(x.at[1:].set(7.0))[0], whole[0])
    np.testing.assert_allclose(run(x[3:4], jnp.array([3]))[0], whole[3], atol=1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(sharded(x, jnp.arange(8)), whole, atol=1e-5)
    gradient = jax.grad(lambda stepper: jnp.sum(run(x, stepper=stepper)))(stepper)
    chex.assert_tree_all_finite(gradient)
    assert float(gradient.size) != 0
    narrow = run(x.astype(jnp.bfloat16))
    assert narrow.dtype == jnp.bfloat16
    chex.assert_tree_all_finite(narrow)


def test_other_sizes_compile_nothing(key):
    """Another step size is another number."""
    p, denoiser, plan, x = small()
    step = jax.jit(chex.assert_max_traces(lambda *a: sampler.sample(*a).x, n=1))
    for snr in (0.1, 0.2):
        step(key, predictor_corrector(sampler.ddim(p), snr=snr), denoiser, plan, x)


def test_a_stream_is_another_noise():
    """Its draws differ between numbers and from the noise's own."""
    noise = core.Independent(jax.random.key(0), 0, 0, (3,), jnp.float32)
    draws = [
        n.increment(0.5, 0.4) for n in (noise, *(stream(noise, jnp.asarray(k)) for k in (0, 1)))
    ]
    assert len(np.unique(np.stack(draws))) == 9


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: predictor_corrector(sampler.ddim(P), -1), ValueError, "0 is the stepper"),
        (lambda: predictor_corrector(sampler.ddim(P), snr=0.0), ValueError, "snr must be pos"),
        (lambda: predictor_corrector(sampler.ddim(P), snr=math.nan), ValueError, "snr must be"),
        (lambda: predictor_corrector(sampler.ddim(P), share=2.0), ValueError, r"in \(0, 2\)"),
        (lambda: predictor_corrector(sampler.ddim(P), share=-0.1), ValueError, "near snr"),
        (lambda: predictor_corrector(sampler.unipc(P)), TypeError, "corrector=False"),
        (lambda: predictor_corrector(bidirectional(sampler.ddim(P))), TypeError, "ancestral"),
        (lambda: predictor_corrector(early_stopping(sampler.ddim(P), 1.0)), TypeError, "Stopping"),
        (
            lambda: predictor_corrector(predictor_corrector(sampler.ddim(P))),
            TypeError,
            "corrections=2",
        ),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()
