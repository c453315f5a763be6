"""Adaptive integration: its pairs, its accuracy, what it reports, and that samples are alone."""

import dataclasses
import math
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler, score
from jaxinf.process.inverse import time_of
from jaxinf.sampler.adaptive import bogacki_shampine, dormand_prince, integrate
from jaxinf.sampler.runge_kutta import rk4

METHODS = {"bogacki_shampine": bogacki_shampine, "dormand_prince": dormand_prince}
P = process.gaussian(process.cosine())
LAW = core.Gaussian(np.array([0.7, -0.2], np.float32), core.Diagonal(0.6))
DENOISER = score.oracle(P, LAW)
X = P.prior().sample(jax.random.key(5), (8, 2))
methods = pytest.mark.parametrize("method", METHODS)


def trees(order):
    """The rooted trees of an order, each as the sorted tuple of its branches."""
    if order == 1:
        return [()]
    found = set()

    def grow(left, largest, branches):
        if left == 0:
            found.add(tuple(sorted(branches)))
        for size in range(min(left, largest), 0, -1):
            for tree in trees(size):
                grow(left - size, size, (*branches, tree))

    grow(order - 1, order - 1, ())
    return sorted(found)


def size(tree):
    return 1 + sum(map(size, tree))


def defects(method, weights, order):
    """Violations of b . phi = 1 / gamma for all rooted trees up to an order."""
    count = len(method.nodes) + 1
    a = np.zeros((count, count))
    for row, shares in zip(a[1:], method.stages, strict=True):
        row[: len(shares)] = shares

    def phi(tree):
        return np.prod([a @ phi(branch) for branch in tree], axis=0) * np.ones(count)

    def gamma(tree):
        return size(tree) * math.prod(map(gamma, tree))

    gaps = [weights @ phi(t) - 1 / gamma(t) for n in range(1, order + 1) for t in trees(n)]
    return np.abs([*gaps, *(a.sum(1) - [0, *method.nodes])]).max()


@methods
def test_the_pairs_meet_the_order_conditions(method):
    """The step to its order and the other weights to one less; two per cent in any breaks it."""
    pair = METHODS[method]
    assert [len(trees(n)) for n in range(1, 6)] == [1, 1, 2, 4, 9]

    def worst(pair):
        weights = np.array(pair.weights)
        lower = weights - np.array(pair.errors)
        return max(
            defects(pair, weights, pair.order), defects(pair, lower, pair.order - 1),
        )  # fmt: skip

    assert worst(pair) < 2e-15
    weights = np.array(pair.weights)
    assert defects(pair, weights, pair.order + 1) > 1e-4
    assert defects(pair, weights - np.array(pair.errors), pair.order) > 1e-4
    for i, row in enumerate([pair.nodes, pair.errors, *pair.stages]):
        for j, number in enumerate(row):
            rows = [pair.nodes, pair.errors, *pair.stages]
            rows[i] = (*row[:j], 1.02 * number, *row[j + 1 :])
            mutant = dataclasses.replace(
                pair, nodes=rows[0], errors=rows[1], stages=tuple(rows[2:])
            )
            assert number == 0 or worst(mutant) > 1e-5


def exact(p, x, t, s, law=LAW):
    """The flow of a Gaussian from t to s: m alpha_s + (x - m alpha_t) std_s / std_t."""
    mean, width = jnp.broadcast_to(jnp.asarray(law.mean, x.dtype), x.shape), law.covariance.scale
    one, two = (jnp.hypot(p.alpha(u) * width, p.sigma(u)) for u in (t, s))
    return mean * p.alpha(s) + (x - mean * p.alpha(t)) * two / one


@methods
@pytest.mark.parametrize("make", [process.cosine, process.edm])
def test_the_error_falls_with_the_tolerance(method, make, x64):
    """A Gaussian's flow: at most four times the tolerance from 1e-3 to 1e-9, and in proportion."""
    p = process.gaussian(make())
    denoiser, x = score.oracle(p, LAW), jnp.asarray(X, jnp.float64) * p.sigma(p.t_max)
    wanted, tolerances, errors = exact(p, x, p.t_max, p.t_min), 10.0 ** -np.arange(3, 10), []
    for tolerance in tolerances:
        out = integrate(
            p, denoiser, x, rtol=tolerance, atol=tolerance, method=METHODS[method], end=p.t_min,
            max_steps=5000,
        )  # fmt: skip
        assert out.info.finished.all()
        errors.append(float(jnp.abs(out.x - wanted).max()))
    assert np.all(errors < 4 * tolerances)
    slope = np.polyfit(np.log(tolerances), np.log(errors), 1)[0]
    assert abs(slope - 1) < 0.25


def test_no_step_is_taken_beyond_the_tolerance(x64):
    """A law whose mean moves halfway: steps too coarse for it are refused.

    It moves within a tenth of the time, about a step's length; what is much narrower may fall
    between the stages of any method, and be seen by none.
    """

    def denoiser(x, t, cond):
        return DENOISER(x, t) + jnp.tanh((t - 0.5) / 0.1)

    x, moving = jnp.asarray(X, jnp.float64), jax.tree_util.Partial(denoiser)
    outs = [integrate(P, moving, x, rtol=t, atol=t, end=0.1) for t in (1e-5, 1e-6, 1e-11)]
    for tolerance, out in zip((1e-5, 1e-6), outs, strict=False):
        assert out.info.rejected.max() > 0
        assert float(jnp.abs(out.x - outs[-1].x).max()) < 10 * tolerance


def test_tolerances_are_relative_and_absolute(x64):
    """Of a linear flow a start a thousand times larger takes the same steps, each in its way."""

    def denoiser(x, t, cond):
        return 0.5 * x

    x, linear = jnp.asarray(X, jnp.float64), jax.tree_util.Partial(denoiser)
    for small, large in (((1e-5, 0.0), (1e-5, 0.0)), ((0.0, 1e-5), (0.0, 1e-2))):
        one = integrate(P, linear, x, rtol=small[0], atol=small[1], end=0.3)
        two = integrate(P, linear, 1000 * x, rtol=large[0], atol=large[1], end=0.3)
        assert one.info.finished.all()
        np.testing.assert_array_equal(one.info.calls, two.info.calls)
        np.testing.assert_allclose(two.x, 1000 * one.x, rtol=1e-12)


def test_it_is_the_flow_of_a_mixture(x64):
    """Within ten times the tolerance of 2,000 steps of rk4, on eight dimensions."""
    rng = np.random.default_rng(3)
    p = process.gaussian(process.edm())
    law = core.mixture(
        jnp.asarray(rng.dirichlet(np.full(4, 3.0))),
        jnp.asarray(rng.normal(size=(4, 8))),
        jnp.asarray(rng.uniform(0.3, 0.6, size=4)),
    )
    denoiser, x = score.oracle(p, law), jnp.asarray(rng.normal(size=(8, 8)) * 80)
    plan = sampler.karras(p, 2000, end=p.t_min)
    truth = sampler.sample(jax.random.key(0), rk4(p), denoiser, plan, x).x
    for tolerance in (1e-6, 1e-8):
        out = integrate(p, denoiser, x, rtol=tolerance, atol=tolerance, end=p.t_min)
        assert float(jnp.abs(out.x - truth).max()) < 10 * tolerance


def test_the_schedule_does_not_matter(x64):
    """From the same ratio to the same ratio, x / r and the steps are the same."""
    outs = []
    for make in (process.edm, process.linear_beta):
        p = process.gaussian(make())
        start, end = (time_of(p, jnp.asarray(log_snr)) for log_snr in (-6.0, 6.0))
        r, x = jnp.hypot(p.alpha(start), p.sigma(start)), jnp.asarray(X, jnp.float64)
        out = integrate(p, score.oracle(p, LAW), r * x, start=start, end=end)
        outs.append((out.x / jnp.hypot(p.alpha(end), p.sigma(end)), out.info.calls))
    for y, calls in outs[1:]:
        np.testing.assert_allclose(y, outs[0][0], rtol=1e-9)
        np.testing.assert_array_equal(calls, outs[0][1])


@pytest.mark.parametrize("make", [process.cosine, process.linear_beta, process.edm])
def test_the_end_is_data(make, x64):
    """The end 0 is one prediction from t_min: of the flow's, and not far from it."""
    p = process.gaussian(make())
    denoiser, x = score.oracle(p, LAW), jnp.asarray(X, jnp.float64) * p.sigma(p.t_max)
    run = partial(integrate, p, denoiser, x, rtol=1e-9, atol=1e-9)
    near, zero = run(end=p.t_min), run()
    wanted = jax.vmap(lambda x: denoiser(x, jnp.float64(p.t_min)))(near.x)
    np.testing.assert_allclose(zero.x, wanted, rtol=1e-12)
    np.testing.assert_array_equal(zero.info.calls, near.info.calls + 1)
    np.testing.assert_array_equal(zero.info.time, 0.0)
    np.testing.assert_allclose(near.info.time, p.t_min, rtol=1e-15)
    share = (p.sigma(p.t_min) / p.alpha(p.t_min) / 0.6) ** 2 / 2  # of what it misses
    assert float(jnp.abs(zero.x - exact(p, x, p.t_max, 0.0)).max()) < 4 * share + 4e-9
    half = run(start=0.6 * p.t_min, end=0.3 * p.t_min)  # no flow at all, one step
    np.testing.assert_array_equal(half.info.calls, 2)
    np.testing.assert_array_equal(half.info.accepted, 0)
    plan = sampler.plan(p, [0.6 * p.t_min, 0.3 * p.t_min])
    ddim = sampler.sample(jax.random.key(0), sampler.ddim(p), denoiser, plan, x).x
    np.testing.assert_allclose(half.x, ddim, rtol=1e-12)


def test_the_calls_are_counted(x64):
    """Alone, a sample's calls are those that happen; each attempt costs one less than stages."""
    seen = []

    def denoiser(x, t, cond):
        jax.debug.callback(lambda: seen.append(1))
        return DENOISER(x, t) + 0.3 * jnp.sin(20 * x)

    x = jnp.asarray(X[:1], jnp.float64)
    for method in METHODS.values():
        for end in (0.0, 0.1):
            seen.clear()
            out = integrate(P, jax.tree_util.Partial(denoiser), x, method=method, end=end)
            jax.effects_barrier()
            info = out.info
            assert len(seen) == info.calls[0]
            tried = info.accepted[0] + info.rejected[0]
            assert info.calls[0] == 1 + len(method.nodes) * tried + (end == 0)
            assert info.rejected[0] > 0


def test_samples_do_not_see_each_other():
    """Bitwise at a fixed shape, to rounding across batches and devices, bitwise in blocks."""
    x = P.prior().sample(jax.random.key(6), (64, 2))
    run = partial(integrate, P, DENOISER, rtol=1e-4, atol=1e-4)
    whole = run(x)
    assert len(np.unique(whole.info.calls)) > 1
    other = run(x.at[1:].multiply(7.0))
    assert not np.array_equal(other.x[1], whole.x[1])
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[0], b[0]), other, whole)
    for count in (1, 3):
        np.testing.assert_allclose(run(x[:count]).x, whole.x[:count], atol=1e-5)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    for bounded, steps in ((False, 1000), (True, 20)):
        shard = jax.jit(
            jax.shard_map(
                partial(run, bounded=bounded, max_steps=steps), mesh=mesh, in_specs=spec,
                out_specs=spec,
            )
        )  # fmt: skip
        np.testing.assert_allclose(shard(x).x, whole.x, atol=1e-5)
    # as users' programs are compiled: without the optimiser the same sums round differently
    options = {"xla_backend_optimization_level": 3}
    run = jax.jit(partial(run, block=3), compiler_options=options)
    blocked = run(x[:7])
    np.testing.assert_allclose(blocked.x, whole.x[:7], atol=1e-5)
    for i in (0, 6):
        alone = run(x[i : i + 1])
        jax.tree.map(lambda a, b, i=i: np.testing.assert_array_equal(a[0], b[i]), alone, blocked)


def test_the_bounded_form_is_the_same(x64):
    """A scan gives the numbers of the while loop, and stops where it does."""
    x = jnp.linspace(0.3, 3, 16).reshape(8, 2)
    one, two = (
        integrate(P, DENOISER, x, rtol=1e-6, atol=1e-6, max_steps=8, bounded=bounded)
        for bounded in (False, True)
    )
    chex.assert_trees_all_close(one, two, rtol=1e-12)
    assert one.info.finished.sum() == 6


def test_gradients_are_those_of_the_flow(x64):
    """By the start, the law's mean and width, against the closed form; forwards and backwards."""
    x, end = jnp.asarray(X, jnp.float64), P.t_min

    def flow(x, mean, width, end):
        denoiser = score.oracle(P, core.Gaussian(mean, core.Diagonal(width)))
        return integrate(
            P, denoiser, x, rtol=1e-8, atol=1e-8, end=end, max_steps=50, bounded=True
        ).x

    def closed(x, mean, width, end):
        stretch = jnp.hypot(P.alpha(end) * width, P.sigma(end)) / P.sigma(P.t_max)
        return mean[None] * P.alpha(end) + x * stretch

    weights = jnp.asarray(np.random.default_rng(0).normal(size=x.shape))
    at = (x, jnp.asarray(LAW.mean, jnp.float64), jnp.asarray(0.6), jnp.asarray(0.05))
    got, wanted = (
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(weights * f(*a)), (0, 1, 2, 3)))(*at)
        for f in (flow, closed)
    )
    chex.assert_trees_all_close(got, wanted, atol=1e-6)
    forwards = jax.jvp(lambda width: integrate(
        P, score.oracle(P, core.Gaussian(at[1], core.Diagonal(width))), x, rtol=1e-8, atol=1e-8,
        end=end,
    ).x, (at[2],), (jnp.ones(()),))[1]  # fmt: skip
    slope = jax.jacfwd(closed, 2)(x, at[1], at[2], end)
    np.testing.assert_allclose(forwards, slope, atol=1e-6)


def test_a_stall_is_reported():
    """Too few steps, or a flow that jumps: where it came to is told, and is still the flow's."""
    out = integrate(P, DENOISER, X, rtol=1e-6, atol=1e-6, max_steps=5)
    assert not out.info.finished.any()
    assert out.info.finite.all()
    np.testing.assert_array_equal(out.info.accepted + out.info.rejected, 5)
    assert np.all((out.info.time > 0.01) & (out.info.time < 1))
    wanted = jax.vmap(lambda x, t: exact(P, x, P.t_max, t))(X, out.info.time)
    np.testing.assert_allclose(out.x, wanted, atol=1e-5)

    def jumping(x, t, cond):
        return DENOISER(x, t) + jnp.where(x > 0.3, 1e3, -1e3) * (t < 0.5)

    out = integrate(P, jax.tree_util.Partial(jumping), X, rtol=1e-7, atol=0.0)
    assert not out.info.finished.any()
    assert np.all((out.info.time < 0.51) & (out.info.time > 0.4))


def test_what_is_not_finite_is_told_and_the_last_finite_state_kept():
    """Sample 1's denoiser breaks below 0.3: it comes to 0.3; sample 2's breaks at the start."""

    def breaking(x, t, cond):
        return jnp.where(t < cond, jnp.nan, 1.0) * DENOISER(x, t)

    limits = jnp.array([0.0, 0.3, 2.0, 0.0])
    out = integrate(P, jax.tree_util.Partial(breaking), X[:4], limits)
    np.testing.assert_array_equal(out.info.finished, [True, False, False, True])
    np.testing.assert_array_equal(out.info.finite, [True, False, False, True])
    np.testing.assert_allclose(out.info.time, [0, 0.3, 1, 0], atol=1e-5)
    np.testing.assert_allclose(out.x[1], exact(P, X[1], 1.0, 0.3), atol=1e-3)
    np.testing.assert_allclose(out.x[2], X[2], rtol=1e-6)
    assert out.info.calls[2] == 1
    plain = integrate(P, DENOISER, X[:4])
    np.testing.assert_allclose(out.x[::3], plain.x[::3], atol=1e-5)
    late = integrate(P, jax.tree_util.Partial(breaking), X[:1], jnp.array([1e-3 * (1 + 1e-3)]))
    assert not late.info.finished[0]
    assert np.isfinite(late.x).all()


def test_other_numbers_compile_nothing():
    """Tolerances, ends and the process are numbers."""
    traces = []

    @core.record
    class Counting:
        process: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return 0.5 * x

    counts = []
    for number in (0.9, 0.8):
        p = process.gaussian(process.cosine(t_max=number))
        integrate(p, Counting(p), X, rtol=number / 100, atol=number / 200, end=number / 10)
        counts.append(len(traces))
    assert counts[0] == counts[1]
    step = jax.jit(chex.assert_max_traces(lambda tol: integrate(P, DENOISER, X, rtol=tol).x, n=1))
    for tolerance in (1e-2, 1e-3):
        step(tolerance)


def test_conditions_and_dtypes():
    """Each sample's condition reaches its denoiser; bfloat16 stays, walked in float32."""
    seen = set()

    def denoiser(x, t, cond):
        seen.add((x.dtype, t.dtype))
        return jnp.full_like(x, cond["label"])

    x = X[:4].astype(jnp.bfloat16)
    out = integrate(P, jax.tree_util.Partial(denoiser), x, {"label": jnp.arange(4.0)})
    np.testing.assert_array_equal(out.x[:, 0], np.arange(4))
    assert out.x.dtype == jnp.bfloat16
    assert seen == {(jnp.dtype(jnp.bfloat16), jnp.dtype(jnp.float32))}
    assert out.info.finished.all()


PLAN = sampler.uniform(P, 3)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: integrate(P, DENOISER, X, rtol=-1e-3), ValueError, "not be negative"),
        (lambda: integrate(P, DENOISER, X, atol=math.nan), ValueError, "not be negative"),
        (lambda: integrate(P, DENOISER, X, rtol=0.0, atol=0.0), ValueError, "nor both 0.*serve"),
        (lambda: integrate(P, DENOISER, X, max_steps=0), ValueError, "max_steps must be"),
        (lambda: integrate(P, DENOISER, X, block=0), ValueError, "block must be"),
        (lambda: integrate(P, DENOISER, X, start=0.5, end=0.5), ValueError, "must fall"),
        (lambda: integrate(P, DENOISER, X, start=1.5), ValueError, r"t_max=1\].*leave both out"),
        (lambda: integrate(P, DENOISER, X, end=-0.1), ValueError, "must fall"),
        (lambda: integrate(P, PLAN, X), TypeError, "need no plan.*sampler.sample"),
        (lambda: integrate(P, DENOISER, X[:0]), ValueError, "at least one"),
        (lambda: integrate(P, DENOISER, X, jnp.arange(3)), ValueError, r"jnp.full\(8, label\)"),
        (lambda: integrate(P, jax.tree_util.Partial(total), X), ValueError, "example's shape"),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()


def total(x, t, cond):
    """A denoiser that forgets the example's shape."""
    return jnp.sum(x)
