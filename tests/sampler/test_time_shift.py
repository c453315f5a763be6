"""Time shifting: steps from the time that the sample's variance tells."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, diagnostics, process, sampler, score
from jaxinf.sampler.bdia import bidirectional
from jaxinf.sampler.time_shift import TimeShift, time_shift

VP = process.gaussian(process.linear_beta())
EDM = process.gaussian(process.edm())
KEY = jax.random.key(0)
SILENT = core.Independent(KEY, 0, 0, (1,), jnp.float32)


@core.record
class Biased:
    """The perfect denoiser with its noise prediction scaled: a controlled exposure bias."""

    process: core.Leaf
    law: core.Leaf
    by: core.Leaf

    def __call__(self, x, t, cond=None):
        clean = self.process.posterior_mean(self.law, x, t)
        noise = process.convert(self.process, t, x, clean, process.x0, process.eps)
        return process.convert(self.process, t, x, self.by * noise, process.eps, process.x0)


def expected(p, t, v):
    """The variance of a number of x_t, for data of variance v."""
    return p.alpha(t) ** 2 * v + p.sigma(t) ** 2


def of_variance(key, variance, d=1024):
    """An example whose numbers have exactly this sample variance."""
    z = jax.random.normal(key, (d,))
    return (z - z.mean()) * jnp.sqrt(variance / jnp.var(z, ddof=1))


def stepped(stepper, x, t, s):
    """One step of a sample that has stepped before, and its info."""
    state = stepper.init(x)._replace(stepped=jnp.array(True))
    noise = core.Independent(jax.random.key(0), 0, 0, x.shape, x.dtype)
    return stepper.step(lambda x, t: 0.5 * x, noise, state, jnp.asarray(t), jnp.asarray(s))


@pytest.mark.parametrize("k", [-9, -4, 0, 1, 7, 10])
@pytest.mark.parametrize("v", [0.0, 0.25])
def test_a_variance_error_of_k_steps_is_found(k, v, key, x64):
    """An example with the variance of k training steps later is taken from t + k steps, exactly."""
    t = 0.5
    x = of_variance(key, expected(VP, t + k / 1000, v))
    stepper = time_shift(sampler.ddim(VP), 20, 0.0, data_variance=v)
    new, info = stepped(stepper, x, t, 0.3)
    np.testing.assert_allclose(info.time, t + k / 1000, rtol=1e-12)
    straight, _ = sampler.ddim(VP).step(
        lambda x, t: 0.5 * x, SILENT, sampler.State(x), jnp.asarray(t + k / 1000), jnp.asarray(0.3)
    )
    np.testing.assert_allclose(new.x, straight.x, rtol=1e-12)


def test_the_window_ends(key, x64):
    """A variance beyond the window gives its edge; no time below the next one or above t_max."""
    stepper = time_shift(sampler.ddim(EDM), 20, 0.0, of=800)  # a grid of 0.1
    low, high = of_variance(key, 0.01), of_variance(key, 1e5)
    for x, t, s, wanted in (
        (low, 10.0, 1.0, 9.0),
        (high, 10.0, 1.0, 11.0),
        (low, 10.0, 9.55, 9.6),
        (high, 79.75, 1.0, 79.95),
    ):
        np.testing.assert_allclose(stepped(stepper, x, t, s)[1].time, wanted, rtol=1e-12)


def test_where_steps_are_not_shifted(key, x64):
    """Neither the first step, nor those up to the cutoff, nor where all variances are equal."""
    x = of_variance(key, 1e-3)
    stepper = time_shift(sampler.ddim(VP), 20, 0.4)
    assert stepped(stepper, x, 0.4, 0.2)[1].time == 0.4
    assert stepped(stepper, x, 0.401, 0.2)[1].time == 0.391
    noise = core.Independent(key, 0, 0, x.shape, x.dtype)
    state, info = stepper.step(
        lambda x, t: x, noise, stepper.init(x), jnp.array(0.8), jnp.array(0.6)
    )
    assert info.time == 0.8
    assert bool(state.stepped)
    level = process.gaussian(process.custom(lambda t: 1 - t, lambda t: 0.5 + 0 * t))
    assert stepped(time_shift(sampler.ddim(level), 20, 0.0), x, 0.5, 0.3)[1].time == 0.5


def test_without_errors_the_shift_is_the_samples_own(x64):
    """Exact samples of x_t: their variances, and so the shifts, are off by O(1 / sqrt(d)).

    The time's variance is within half a grid step of the sample's, whose mean square deviation from
    the process's is 2 v^2 / (d - 1) (|z| < 4 over 200 samples).
    """
    t, n = 0.5, 200
    variance = float(expected(VP, t, 0.25))
    spacing = float(expected(VP, t + 0.001, 0.25) - expected(VP, t, 0.25))
    stepper = time_shift(sampler.ddim(VP), 900, 0.0, data_variance=0.25)
    for d in (256, 1024):
        x = jnp.sqrt(variance) * jax.random.normal(jax.random.key(d), (n, d))
        times = jax.vmap(lambda x: stepped(stepper, x, t, 0.01)[1].time)(x)
        found = jax.vmap(lambda t: expected(VP, t, 0.25))(times)
        inside = (times > 0.06) & (times < 0.94)
        gap = jnp.where(inside, found - jnp.var(x, axis=1, ddof=1), 0.0)
        assert float(jnp.max(jnp.abs(gap))) < spacing * 3
        z = (jnp.mean((found - variance) ** 2) * (d - 1) / (2 * variance**2) - 1) * np.sqrt(n / 2)
        assert abs(float(z)) < 4


def test_no_window_is_the_wrapped_stepper():
    """A window of no step or one holds t alone: the wrapped stepper, or else its very bits."""
    base = sampler.ancestral(VP)
    assert time_shift(base, 0, 0.0) is base
    assert time_shift(base, 1, 0.0) is base
    law = core.gaussian(jnp.zeros(16), core.Diagonal(0.5))
    x, plan, key = VP.prior().sample(jax.random.key(1), (4, 16)), sampler.uniform(VP, 5), KEY
    denoiser = score.oracle(VP, law)
    plain = sampler.sample(key, base, denoiser, plan, x).x
    same = sampler.sample(key, TimeShift(base, 0.0, 0.0, 1, 1000), denoiser, plan, x).x
    np.testing.assert_array_equal(same, plain)


def test_it_mends_the_variance_in_high_dimension():
    """1,024 numbers, noise predicted 3 % too large: nearer at each step, and at the end by half."""
    v, d = 0.25, 1024
    denoiser = Biased(VP, core.gaussian(jnp.zeros(d), core.Diagonal(0.5)), 1.03)
    x, plan = VP.prior().sample(jax.random.key(3), (16, d)), sampler.uniform(VP, 10)
    wanted = np.asarray(jax.vmap(lambda t: expected(VP, t, v))(jnp.asarray(plan.times[1:])))

    def errors(window):
        stepper = time_shift(sampler.ddim(VP), window, 0.0, data_variance=v)
        out = sampler.sample(KEY, stepper, denoiser, plan, x, trajectory=True)
        return out, np.asarray(jnp.var(out.info.path.x, axis=-1, ddof=1)).mean(1) - wanted

    (_, plain), (out, shifted) = errors(0), errors(60)
    assert abs(shifted[-1]) < 0.5 * abs(plain[-1])
    assert np.all(np.abs(shifted[1:]) < np.abs(plain[1:]))
    # the variance before each step is nearer to that of the time taken than of the plan's
    before, times = jnp.var(out.info.path.x[:-1], axis=-1, ddof=1), out.info.path.info.time[1:]
    gap = np.abs(before - jax.vmap(jax.vmap(lambda t: expected(VP, t, v)))(times))
    straight = np.abs(before - wanted[:-1, None])
    assert np.all(gap <= straight + 1e-6)
    assert np.all(gap.mean(1) < straight.mean(1))


@pytest.mark.parametrize(
    ("base", "rules"),
    [
        (sampler.ddim, [(40, 0.3, 0.0, 1.0), (40, 0.0, 0.14, 0.8)]),
        (sampler.ancestral, [(40, 0.0, 0.14, 0.85)]),
    ],
    ids=["ddim", "ancestral"],
)
def test_it_mends_exposure_bias_on_a_mixture(base, rules):
    """64-d mixture, ten steps, noise predicted 4 % too large: nearer to the data.

    By the paper's rule (v = 0, with its cutoff) over DDIM, and by far with the data's variance. (Of
    the ancestral sampler's distance the paper's rule takes 2 %, too little to see here.) z-score of
    the paired differences over nine draws.
    """
    d, n = 64, 512
    means = 0.3 * np.random.default_rng(0).normal(size=(4, d)).astype(np.float32)
    law = core.mixture(jnp.array([0.1, 0.2, 0.3, 0.4]), jnp.asarray(means), jnp.full(4, 0.2))
    plan, denoiser = sampler.uniform(VP, 10), Biased(VP, law, 1.04)

    def distances(stepper):
        def one(i):
            keys = jax.random.split(jax.random.key(i), 4)
            data = jax.vmap(law.sample)(jax.random.split(keys[0], 2 * n))
            x = VP.prior().sample(keys[1], (n, d))
            out = sampler.sample(keys[2], stepper, denoiser, plan, x).x
            return diagnostics.sliced_wasserstein(keys[3], out, data, 128)

        return np.array([one(i) for i in range(9)])

    plain = distances(base(VP))
    for window, cutoff, v, most in rules:
        shifted = distances(time_shift(base(VP), window, cutoff, data_variance=v))
        gain = plain - shifted
        assert gain.mean() > 4 * gain.std(ddof=1) / 3
        assert shifted.mean() < most * plain.mean()


def test_composes_and_compiles_once():
    """Under jit(shard_map) on eight devices as plain; gradients are finite; one trace."""
    law = core.gaussian(jnp.zeros(8), core.Diagonal(0.5))
    plan = sampler.uniform(VP, 5, end=VP.t_min)
    stepper = time_shift(sampler.ancestral(VP), 30, 0.1)
    x, denoiser = VP.prior().sample(jax.random.key(1), (16, 8)), Biased(VP, law, 1.03)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def run(x, index):
        return sampler.sample(KEY, stepper, denoiser, plan, x, index=index).x

    sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
    np.testing.assert_allclose(sharded(x, jnp.arange(16)), run(x, None), atol=1e-5)
    gradient = jax.grad(
        lambda stepper, den: jnp.sum(sampler.sample(KEY, stepper, den, plan, x).x), (0, 1)
    )(stepper, denoiser)
    chex.assert_tree_all_finite(gradient)

    traces = []

    @core.record
    class Counting:
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return self.scale * x

    for number in (0.1, 0.2):
        changed = time_shift(sampler.ancestral(VP), 30, number, data_variance=number)
        sampler.sample(KEY, changed, Counting(number), plan, x)
    assert len(traces) == 1
    assert plan.calls(stepper) == 5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: time_shift(sampler.ddim(VP), -2, 0.0), "window must not be negative"),
        (lambda: time_shift(sampler.ddim(VP), 20, 0.0, of=0), "of at least 1"),
        (lambda: time_shift(sampler.ddim(VP), 20, 0.0, data_variance=-1.0), "data_variance"),
        (lambda: time_shift(Tabled(VP), 20, 0.0), "from the plan beforehand"),
        (lambda: time_shift(sampler.ddim(COLOURED), 20, 0.0), "white noise"),
        (
            lambda: time_shift(sampler.ddim(VP), 20, 0.0).init(jnp.ones(1)),
            "a variance.*needs two",
        ),
        (lambda: bidirectional(Tabled(VP)), "one-step method"),
    ],
)
def test_bad_input(call, message):
    """Each mistake is named with its mend."""
    with pytest.raises(ValueError, match=message):
        call()


COLOURED = process.gaussian(process.linear_beta(), core.dense(jnp.eye(2) + 0.5))


@core.record
class Tabled:
    """A stepper with numbers from the plan."""

    process: core.Leaf

    def init(self, x):
        return sampler.State(x)

    def table(self, times):
        return times[1:]

    def step(self, denoise, noise, state, t, s, row):
        return state, None

    def calls(self, t, s):
        return 1
