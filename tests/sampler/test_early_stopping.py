"""Stopping each sample when its prediction of the clean example has settled."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler, score
from jaxinf.sampler.early_stopping import calls_used, early_stopping

KEY = jax.random.key(0)
EDM = process.gaussian(process.edm())
PLAN = sampler.plan(EDM, np.linspace(4.0, 0.0, 33))
FINE = sampler.plan(EDM, np.linspace(1.0, 0.0, 65))
LAW = core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.5))
DENOISER = score.oracle(EDM, LAW)


def start(batch=64, plan=PLAN):
    """Exact samples at the plan's first time."""
    law = EDM.marginal(LAW, plan.times[0])
    return jax.vmap(law.sample)(jax.random.split(jax.random.key(1), batch))


def run(stepper, x, plan=PLAN, **options):
    return sampler.sample(KEY, stepper, DENOISER, plan, x, **options)


def test_no_tolerance_is_the_stepper():
    """0 returns the wrapped stepper; a traced 0 never stops and takes its very steps."""
    stepper, x = sampler.heun(EDM), start()
    assert early_stopping(stepper, 0.0) is stepper
    traced = jax.jit(lambda tolerance: run(early_stopping(stepper, tolerance), x))(0.0)
    atol = 4 * PLAN.steps * np.finfo(np.float32).eps * float(jnp.abs(x).max())
    np.testing.assert_allclose(traced.x, run(stepper, x).x, rtol=0, atol=atol)
    assert not bool(jnp.any(traced.state.stopped))
    np.testing.assert_array_equal(traced.state.steps, PLAN.steps)


@pytest.mark.parametrize("make", [sampler.ddim, sampler.heun], ids=["ddim", "heun"])
def test_the_distance_from_the_whole_walk(make, x64):
    """Below r = c / sqrt(2) changes shrink: within tolerance times the steps left, by every sample.

    The bound is of use: some sample reaches a fifth of it.
    """
    x = start(256, FINE).astype(float)
    stepper, ratio = make(EDM), 0.5 / np.sqrt(2)
    end = run(stepper, x, FINE).x
    for tolerance in (0.002, 0.004):
        out = run(early_stopping(stepper, tolerance, ratio), x, FINE)
        distance = np.sqrt(np.mean((np.asarray(out.x) - end) ** 2, axis=1))
        steps = np.asarray(out.state.steps)
        bound = tolerance * (FINE.steps - steps)
        assert np.all(distance <= bound + 1e-12)
        stopped = steps < FINE.steps
        assert stopped.sum() > 20
        assert np.max(distance[stopped] / bound[stopped]) > 0.2


def test_the_rule(x64):
    """The first step, not the very first, at low noise, whose x0 moved less: its x0 is the end."""
    x, tolerance, ratio = start(plan=FINE).astype(float), 0.004, 0.5
    plain = run(sampler.ddim(EDM), x, FINE, trajectory=True).info.path
    clean = np.asarray(plain.info.clean)
    moved = np.sqrt(np.mean(np.diff(clean, axis=0) ** 2, axis=2))
    may = (moved < tolerance) & (FINE.times[1:-1] < ratio)[:, None]
    at = np.where(may.any(0), 1 + np.argmax(may, axis=0), FINE.steps)
    out = run(early_stopping(sampler.ddim(EDM), tolerance, ratio), x, FINE, trajectory=True)
    assert len(np.unique(at)) > 3
    np.testing.assert_array_equal(out.state.steps, np.minimum(at + 1, FINE.steps))
    np.testing.assert_array_equal(out.state.stopped, at < FINE.steps)
    for i, step in enumerate(at):
        last = min(step, FINE.steps - 1)
        np.testing.assert_allclose(out.x[i], clean[last, i], rtol=1e-12)
        path = jax.tree.map(lambda a, i=i: a[:, i], out.info.path)
        np.testing.assert_allclose(path.x[:last], plain.x[:last, i], rtol=1e-12)
        np.testing.assert_array_equal(
            path.x[last:], np.broadcast_to(path.x[last], path.x[last:].shape)
        )
        np.testing.assert_array_equal(
            path.info.steps, np.minimum(1 + np.arange(FINE.steps), last + 1)
        )
        np.testing.assert_array_equal(path.info.stopped, np.arange(FINE.steps) >= step)
        np.testing.assert_allclose(path.info.clean[last:], clean[[last] * (FINE.steps - last), i])
        assert np.all(np.asarray(path.info.inner.clean)[last + 1 :] == 0)


def test_the_noise_ratio():
    """However large the tolerance, the first chance is the first step below the ratio."""
    x = start(4)
    for ratio, first in ((1.0, 25), (2.0, 17), (jnp.inf, 1)):
        out = run(early_stopping(sampler.ddim(EDM), 1e3, ratio), x)
        np.testing.assert_array_equal(out.state.steps, first + 1)


def test_a_larger_tolerance_takes_fewer_steps():
    """For each sample the number of steps falls with the tolerance, in the mean strictly."""
    x = start()
    steps = [
        run(early_stopping(sampler.ddim(EDM), tolerance), x).state.steps
        for tolerance in (0.003, 0.01, 0.03, 0.1)
    ]
    assert np.all(np.diff(steps, axis=0) <= 0)
    assert np.all(np.diff(np.mean(steps, axis=1)) < 0)


def test_samples_do_not_see_each_other():
    """Sample 0 is the same to the last bit when the others change, and alone to rounding."""
    stepper, x = early_stopping(sampler.ancestral(EDM), 0.05), start(8)
    out, other = run(stepper, x), run(stepper, x.at[1:].set(3.0))
    np.testing.assert_array_equal(out.x[0], other.x[0])
    assert out.state.steps[0] == other.state.steps[0]
    third = run(stepper, x[3:4], index=jnp.array([3]))
    np.testing.assert_allclose(third.x[0], out.x[3], atol=1e-5)
    assert third.state.steps[0] == out.state.steps[3]
    assert len(np.unique(out.state.steps)) > 1


def test_calls():
    """Heun's two calls a step, one for a last step to the data; of a run, and by hand."""
    stepper = sampler.heun(EDM)
    wrapped = early_stopping(stepper, 0.02)
    np.testing.assert_array_equal(calls_used(wrapped, PLAN, jnp.arange(33)), [*range(0, 64, 2), 63])
    out = run(wrapped, start())
    calls = calls_used(stepper, PLAN, out.state.steps)
    np.testing.assert_array_equal(calls, np.minimum(2 * np.asarray(out.state.steps), 63))
    assert PLAN.calls(wrapped) == 63
    with pytest.raises(ValueError, match="only falls"):
        calls_used(stepper, sampler.Plan(PLAN.times, rises=True), jnp.array([1]))


def test_composes_and_compiles_once():
    """Over a stepper with a table, under jit(shard_map) as plain; finite gradients; one trace."""
    p = process.gaussian(process.cosine(t_max=0.99))
    plan, x = sampler.uniform(p, 8), p.prior().sample(jax.random.key(1), (16, 2))
    denoiser = score.oracle(p, LAW)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    stepper = early_stopping(sampler.dpm_solver(p, 2), 0.1)

    def go(x, index):
        out = sampler.sample(KEY, stepper, denoiser, plan, x, index=index)
        return out.x, out.state.steps

    sharded = jax.jit(jax.shard_map(go, mesh=mesh, in_specs=(spec, spec), out_specs=(spec, spec)))
    got, wanted = sharded(x, jnp.arange(16)), go(x, None)
    np.testing.assert_allclose(got[0], wanted[0], atol=1e-5)
    np.testing.assert_array_equal(got[1], wanted[1])
    assert np.min(wanted[1]) < plan.steps
    gradient = jax.grad(lambda d: jnp.sum(sampler.sample(KEY, stepper, d, plan, x).x))(denoiser)
    chex.assert_tree_all_finite(gradient)

    traces = []

    @core.record
    class Counting:
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return self.scale * x

    for number in (0.1, 0.2):
        changed = early_stopping(sampler.ddim(p), number, 1.0 + number)
        sampler.sample(KEY, changed, Counting(number), plan, x)
        count = len(traces) if number == 0.1 else count
    assert len(traces) == count


@core.record
class Bare:
    """A stepper that tells nothing."""

    process: core.Leaf

    def init(self, x):
        return sampler.State(x)

    def step(self, denoise, noise, state, t, s):
        return state, None

    def calls(self, t, s):
        return 1


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: early_stopping(sampler.ddim(EDM), -0.1), ValueError, "tolerance must not be neg"),
        (
            lambda: early_stopping(sampler.ddim(EDM), np.nan),
            ValueError,
            "tolerance must not be neg",
        ),
        (
            lambda: early_stopping(sampler.ddim(EDM), 0.1, 0.0),
            ValueError,
            "noise_ratio must be pos",
        ),
        (
            lambda: early_stopping(Bare(types.SimpleNamespace(t_max=1.0)), 0.1),
            TypeError,
            "needs a Gaussian process",
        ),
        (lambda: run(early_stopping(Bare(EDM), 0.1), start(2)), TypeError, "the field 'clean'"),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()
