"""Bi-directional integration, and its inverse."""

from functools import cache

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler, score
from jaxinf.sampler.bdia import Bidirectional, bidirectional, invert

VP = process.gaussian(process.cosine(t_max=0.99))
LAW = core.gaussian(jnp.array([0.7]), core.Diagonal(0.6))
MODES = core.mixture(
    jnp.array([0.4, 0.6]), jnp.array([[-1.0, 0.3], [1.0, -0.5]]), jnp.array([0.2, 0.3])
)
PAIR = core.mixture(jnp.array([0.4, 0.6]), jnp.array([[-1.0], [1.0]]), jnp.array([0.2, 0.2]))
DDIM = sampler.ddim(VP)
SILENT = core.Independent(jax.random.key(0), 0, 0, (1,), jnp.float32)


def run(stepper, plan, x, law=MODES):
    return sampler.sample(jax.random.key(0), stepper, score.oracle(VP, law), plan, x)


def starts(n=64, d=2):
    return VP.prior().sample(jax.random.key(5), (n, d))


def test_the_step_is_the_papers_formula(x64):
    """Three steps written out: z_{i-1} by z_{i+1}, z_i and the two increments at z_i."""
    gamma, denoiser = 0.7, score.oracle(VP, MODES)
    plan = sampler.plan(VP, [0.9, 0.7, 0.4, 0.3])

    @jax.jit
    def increment(z, t, s):
        clean = denoiser(z, t)
        noise = process.convert(VP, t, z, clean, process.x0, process.eps)
        return VP.alpha(s) * clean + VP.sigma(s) * noise - z

    z = [starts(1)[0].astype(jnp.float64)]
    t = plan.times
    z.append(z[0] + increment(z[0], t[0], t[1]))
    for i in (1, 2):
        z.append(
            gamma * z[i - 1]
            + (1 - gamma) * z[i]
            - gamma * increment(z[i], t[i], t[i - 1])
            + increment(z[i], t[i], t[i + 1])
        )
    out = run(bidirectional(DDIM, gamma), plan, z[0][None])
    np.testing.assert_allclose(out.x[0], z[3], rtol=1e-13)
    np.testing.assert_allclose(out.state.before[0], z[2], rtol=1e-13)
    np.testing.assert_allclose(out.state.time, [0.4], rtol=1e-15)


def test_gamma_zero_is_the_wrapped_stepper():
    """As a number it returns it; traced, the same numbers to the last bit."""
    assert bidirectional(DDIM, 0.0) is DDIM
    plan, x = sampler.uniform(VP, 8), starts()
    traced = jax.jit(lambda gamma: run(Bidirectional(DDIM, gamma), plan, x).x)(0.0)
    np.testing.assert_allclose(traced, run(DDIM, plan, x).x, rtol=0, atol=4 * 8 * 2.4e-7)


@pytest.mark.parametrize("end", [0.0, 1e-3])
def test_the_round_trip_is_exact(end, x64):
    """Twenty steps down and back at gamma = 1 on two modes in one dimension, per dtype."""
    plan, stepper = sampler.uniform(VP, 20, end=end), bidirectional(DDIM)
    for dtype, tolerance in ((jnp.float64, 1e-12), (jnp.float32, 6e-6)):
        x = starts(64, 1).astype(dtype)
        state = run(stepper, plan, x, PAIR).state
        back = invert(stepper, score.oracle(VP, PAIR), plan, state)
        assert back.dtype == dtype
        np.testing.assert_allclose(back, x, rtol=0, atol=tolerance)


def test_naive_inversion_is_far_off(x64):
    """DDIM's own steps with the times turned round do not come back to the start."""
    denoiser, plan = score.oracle(VP, PAIR), sampler.uniform(VP, 20, end=VP.t_min)
    x = starts(64, 1).astype(jnp.float64)

    def up(z, slot):
        step = jax.vmap(lambda z: DDIM.step(denoiser, SILENT, sampler.State(z), *slot)[0].x)
        return step(z), None

    times = jnp.asarray(plan.times[::-1])
    back, _ = jax.lax.scan(up, run(DDIM, plan, x, PAIR).x, (times[:-1], times[1:]))
    assert float(jnp.max(jnp.abs(back - x))) > 0.1


def test_a_condition_reaches_the_inverse(x64):
    """Each sample is walked back with its own condition."""
    denoiser = jax.tree_util.Partial(lambda x, t, cond: x / (1 + t) + cond * jnp.sin(x))
    stepper, plan, x = bidirectional(DDIM), sampler.uniform(VP, 6), starts(3).astype(jnp.float64)
    cond = jnp.arange(3.0)
    out = sampler.sample(jax.random.key(0), stepper, denoiser, plan, x, cond)
    back = invert(stepper, denoiser, plan, out.state, cond)
    np.testing.assert_allclose(back, x, rtol=0, atol=1e-13)
    assert not np.allclose(invert(stepper, denoiser, plan, out.state, 0 * cond), x, atol=1e-3)


@pytest.mark.parametrize("gamma", [1.0, 0.8, 0.5])
def test_an_error_grows_by_one_over_gamma_a_step(gamma, x64):
    """Without increments an error d of z_0 becomes d (1 + gamma (-1 / gamma)^N) / (1 + gamma)."""
    edm = process.gaussian(process.edm())
    still = jax.tree_util.Partial(lambda x, t, cond: x)
    stepper, n, error = bidirectional(sampler.ddim(edm), gamma), 20, 1e-3
    plan = sampler.karras(edm, n, end=edm.t_min)
    x = jnp.zeros((2, 3))
    state = sampler.sample(jax.random.key(0), stepper, still, plan, x).state
    back = invert(stepper, still, plan, state._replace(x=state.x + error))
    wanted = error * (1 + gamma * (-1 / gamma) ** n) / (1 + gamma)
    np.testing.assert_allclose(back, wanted, rtol=1e-9)


def test_the_round_trip_loses_digits_as_gamma_falls(x64):
    """At gamma = 0.5 twenty steps cost a factor 2^20 of rounding, to within 2^4 either way."""
    plan, x = sampler.uniform(VP, 20), starts().astype(jnp.float64)
    stepper = bidirectional(DDIM, 0.5)
    back = invert(stepper, score.oracle(VP, MODES), plan, run(stepper, plan, x).state)
    error = float(jnp.max(jnp.abs(back - x)))
    assert 2**16 * 2.2e-16 < error < 2**24 * 2.2e-16


def test_order_and_error_constant(x64):
    """Order 2 at gamma = 1; below, order 1 with (1 - gamma) / (1 + gamma) of DDIM's error.

    On the flow of a Gaussian, whose end points are known: z_0 = m_0 + (z_T - m_T) s_0 / s_T.
    """
    x = starts(32, 1).astype(jnp.float64)
    first, last = VP.marginal(LAW, VP.t_max), VP.marginal(LAW, VP.t_min)
    ratio = last.covariance.scale / first.covariance.scale
    truth = last.mean[0] + (x - first.mean[0]) * ratio

    def errors(gamma):
        return [
            float(jnp.sqrt(jnp.mean((run(stepper, plan, x, LAW).x - truth) ** 2)))
            for stepper in [bidirectional(DDIM, gamma)]
            for plan in (sampler.uniform(VP, n, end=VP.t_min) for n in (400, 800))
        ]

    plain = errors(0.0)
    assert abs(np.log2(plain[0] / plain[1]) - 1) < 0.05
    for gamma in (0.25, 0.5):
        coarse, fine = errors(gamma)
        assert abs(np.log2(coarse / fine) - 1) < 0.05
        np.testing.assert_allclose(fine / plain[1], (1 - gamma) / (1 + gamma), rtol=0.01)
    coarse, fine = errors(1.0)
    assert abs(np.log2(coarse / fine) - 2) < 0.05
    assert fine > 1e-11


def test_one_call_a_step_and_no_recompilation(key):
    """The denoiser is traced once in all for the driver and once for the inverse."""
    x = starts(4)
    traces = []

    @core.record
    class Counting:
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return self.scale * x

    for scale in (0.4, 0.5):
        plan, stepper = sampler.uniform(VP, 7, end=0.1 * scale), bidirectional(DDIM, scale)
        out = sampler.sample(key, stepper, Counting(scale), plan, x)
        invert(stepper, Counting(scale), plan, out.state)
    assert len(traces) == 2
    assert plan.calls(stepper) == 7


def test_composes_under_shard_map_and_grad(key):
    """Down and back under jit(shard_map) on eight devices; the gradient by the denoiser exists."""
    stepper, denoiser, plan = (
        bidirectional(DDIM, 0.9),
        score.oracle(VP, MODES),
        sampler.uniform(VP, 6),
    )
    x = starts(16)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")

    def round_trip(x, index):
        out = sampler.sample(key, stepper, denoiser, plan, x, index=index)
        return out.x, invert(stepper, denoiser, plan, out.state)

    sharded = jax.jit(jax.shard_map(round_trip, mesh=mesh, in_specs=spec, out_specs=spec))
    down, back = sharded(x, jnp.arange(16))
    np.testing.assert_allclose(down, round_trip(x, None)[0], atol=1e-5)
    np.testing.assert_allclose(back, x, atol=1e-5)
    gradient = jax.grad(
        lambda stepper, den: jnp.sum(sampler.sample(key, stepper, den, plan, x).x), (0, 1)
    )(stepper, denoiser)
    chex.assert_tree_all_finite(gradient)


def test_bfloat16_keeps_its_times():
    """The states are the start's dtype; the time before is float32, so increments are right."""
    out = run(bidirectional(DDIM), sampler.uniform(VP, 12), starts().astype(jnp.bfloat16))
    assert out.x.dtype == jnp.bfloat16
    assert out.state.time.dtype == jnp.float32
    np.testing.assert_allclose(out.state.time, sampler.uniform(VP, 12).times[-2], rtol=1e-6)


@cache
def given():
    """What invert takes."""
    stepper, plan = bidirectional(DDIM), sampler.uniform(VP, 3)
    return stepper, score.oracle(VP, MODES), plan, run(stepper, plan, starts()).state


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: bidirectional(DDIM, 1.5), ValueError, r"gamma must be in \[0, 1\]"),
        (lambda: bidirectional(DDIM, -0.1), ValueError, r"gamma must be in \[0, 1\]"),
        (lambda: bidirectional(sampler.heun(VP)), ValueError, r"one call.*sampler.ddim"),
        (
            lambda: run(bidirectional(sampler.ancestral(VP)), sampler.uniform(VP, 3), starts()),
            ValueError,
            "draws noise.*sampler.ddim",
        ),
        (lambda: invert(DDIM, *given()[1:]), TypeError, "only sampler.bidirectional"),
        (lambda: invert(*given()[:3], given()[3].x), TypeError, "out.state"),
        (
            lambda: invert(*given()[:2], sampler.Plan(given()[2].times, rises=True), given()[3]),
            ValueError,
            "cannot be walked back",
        ),
        (
            lambda: invert(*given()[:2], sampler.uniform(VP, 4), given()[3]),
            ValueError,
            "pass the plan that was walked",
        ),
        (lambda: invert(*given(), jnp.arange(3)), ValueError, r"leading axis 64"),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()
