"""The driver, and plans."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxinf import core, process, sampler, score

VP = process.gaussian(process.cosine())
LAW = core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.6))
DENOISER = score.oracle(VP, LAW)
X = VP.prior().sample(jax.random.key(5), (4, 2))


def test_plans_hold_their_formulas():
    """Uniform times are equally spaced from t_max; Karras' are equation 5 of the paper."""
    np.testing.assert_allclose(sampler.uniform(VP, 4).times, [1, 0.75, 0.5, 0.25, 0])
    edm = process.gaussian(process.edm())
    times = sampler.karras(edm, 18).times
    i = np.arange(18)
    wanted = (80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(times, [*wanted, 0.0], rtol=1e-12)
    assert sampler.karras(edm, 18, end=edm.t_min).times[-1] == 0.002
    assert sampler.karras(edm, 1).times.tolist() == [80, 0]
    np.testing.assert_allclose(
        sampler.karras(edm, 4, rho=1.0, end=0.5).times[[1, -1]], [60.125, 0.5]
    )
    assert sampler.plan(VP, [1 + 5e-7, 0.5]).times.tolist() == [1, 0.5]  # rounding is cut off


def test_plans_count_the_calls():
    """The counted calls are those that happen."""
    calls = []

    def denoise(x, t):
        jax.debug.callback(lambda: calls.append(1))
        return 0.5 * x

    for make in (sampler.ddim, sampler.ancestral, sampler.heun):
        for end in (0.0, 0.1):
            plan, stepper = sampler.uniform(VP, 5, end=end), make(VP)
            calls.clear()
            state = sampler.State(jnp.ones(1))
            noise = core.Independent(jax.random.key(0), 0, 0, (1,), jnp.float32)
            for t, s in zip(plan.times[:-1], plan.times[1:], strict=True):
                state, _ = stepper.step(denoise, noise, state, jnp.float32(t), jnp.float32(s))
            jax.effects_barrier()
            assert len(calls) == plan.calls(stepper)


def test_the_driver_is_the_scan_written_by_hand(key):
    """The same arithmetic in a plain scan gives the same numbers."""
    plan = sampler.uniform(VP, 6)
    stepper = sampler.ancestral(VP)
    hashed = jax.random.fold_in(key, 0)

    def body(x, slot):
        i, t, s = slot

        def one(x, index):
            noise = core.Independent(hashed, i, index, (2,), jnp.float32)
            return stepper.step(lambda x, t: DENOISER(x, t), noise, sampler.State(x), t, s)[0].x

        x = jax.vmap(one)(x, jnp.arange(4))
        return x, x

    times = jnp.asarray(plan.times, jnp.float32)
    _, path = jax.lax.scan(body, X, (jnp.arange(6), times[:-1], times[1:]))
    out = sampler.sample(key, stepper, DENOISER, plan, X, trajectory=True)
    np.testing.assert_allclose(out.info.path.x, path, atol=1e-6)
    np.testing.assert_array_equal(out.info.path.x[-1], out.x)
    assert out.info.path.info.clean.shape == (6, 4, 2)
    assert sampler.sample(key, stepper, DENOISER, plan, X).info.path is None


def test_conditions_reach_the_denoiser(key):
    """Each sample's condition, a pytree, is handed to its denoiser."""

    @core.record
    class Labelled:
        process: core.Leaf

        def __call__(self, x, t, cond=None):
            return jnp.full_like(x, cond["label"]) + 0 * x

    out = sampler.sample(
        key, sampler.ddim(VP), Labelled(VP), sampler.uniform(VP, 3), X, {"label": jnp.arange(4.0)}
    )
    np.testing.assert_allclose(out.x[:, 0], np.arange(4), atol=1e-6)


def test_a_second_call_compiles_nothing(key):
    """Other numbers in every record, rebuilt: one trace of the denoiser in all."""
    traces = []

    @core.record
    class Counting:
        process: core.Leaf
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return self.scale * x

    for t_max in (0.9, 0.8):
        p = process.gaussian(process.cosine(t_max=t_max))
        plan = sampler.uniform(p, 7)
        sampler.sample(key, sampler.ddim(p, eta=t_max), Counting(p, t_max), plan, X)
    assert len(traces) == 1


def test_compile_time_and_memory_do_not_depend_on_steps(key):
    """The program for 1,000 steps has the size of the one for 10, and stacks no state."""

    def program(steps):
        plan = sampler.uniform(VP, steps)
        run = jax.jit(lambda x: sampler.sample(key, sampler.heun(VP), DENOISER, plan, x).x)
        compiled = run.lower(X).compile()
        return len(compiled.as_text().splitlines()), compiled.memory_analysis()

    (short, a), (long, b) = program(10), program(1000)
    # where the compiler splits a program moves by some lines; a step that is unrolled has dozens
    assert abs(long - short) < (1000 - 10) / 100
    table = 4 * 3 * 1000  # the times and indices themselves, in bytes
    assert b.temp_size_in_bytes - a.temp_size_in_bytes <= 2 * table


def test_info_reports_what_is_not_finite(key):
    """A sample that blows up is flagged, the others are not."""

    @core.record
    class Breaking:
        process: core.Leaf

        def __call__(self, x, t, cond=None):
            return jnp.where(cond == 2, jnp.nan, 0.5) * x

    out = sampler.sample(
        key, sampler.ddim(VP), Breaking(VP), sampler.uniform(VP, 3), X, jnp.arange(4)
    )
    np.testing.assert_array_equal(out.info.finite, [True, True, False, True])


def test_progress_shows_a_bar(key, capsys):
    """With progress on, a bar reaches the end; off, the program has no callback."""
    plan = sampler.uniform(VP, 20)
    sampler.sample(key, sampler.ddim(VP), DENOISER, plan, X, progress=True)
    jax.effects_barrier()
    assert "20/20" in capsys.readouterr().err

    def text(progress):
        return str(
            jax.make_jaxpr(
                lambda x: (
                    sampler.sample(key, sampler.ddim(VP), DENOISER, plan, x, progress=progress).x
                )
            )(X)
        )

    assert "callback" in text(True)
    assert "callback" not in text(False)


def test_bfloat16_and_float64_keep_their_dtype(key):
    """The samples have the start's dtype; times are at least float32."""
    plan, seen = sampler.uniform(VP, 3), set()
    x = X.astype(jnp.bfloat16)

    def denoiser(x, t, cond):
        seen.add(t.dtype)
        return DENOISER(x, t)

    out = sampler.sample(key, sampler.ddim(VP), jax.tree_util.Partial(denoiser), plan, x)
    assert out.x.dtype == jnp.bfloat16
    assert seen == {jnp.dtype(jnp.float32)}
    with jax.enable_x64(True):
        out = sampler.sample(key, sampler.ddim(VP), DENOISER, plan, X.astype(jnp.float64))
        assert out.x.dtype == jnp.float64


@core.record
class Summing:
    """A denoiser that forgets the example's shape."""

    process: core.Leaf

    def __call__(self, x, t, cond=None):
        return jnp.sum(x)


def walked(key, times):
    return sampler.sample(key, *RUN[:2], sampler.Plan(np.array(times)), X)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda k: sampler.sample(jnp.zeros(2, jnp.uint32), *RUN), TypeError, r"jax.random.key"),
        (lambda k: sampler.sample(k, *RUN[:3], X[:0]), ValueError, "at least one"),
        (lambda k: sampler.sample(k, *RUN[:3], jnp.ones((4, 2), int)), TypeError, "floating"),
        (lambda k: sampler.sample(k, *RUN, jnp.arange(3)), ValueError, r"jnp.full\(4, label\)"),
        (
            lambda k: sampler.sample(k, RUN[0], Summing(VP), *RUN[2:]),
            ValueError,
            "example's shape",
        ),
        (
            lambda k: sampler.sample(k, *RUN[:2], sampler.uniform(EDM, 3), X),
            ValueError,
            "outside the stepper's process.*same process",
        ),
        (lambda k: walked(k, [1.0, 0.5, 0.5, 0.1]), ValueError, r"step 1 .*t=0\.5 to t=0\.5"),
        (lambda k: walked(k, [1.0, 0.2, 0.5, 0.1]), ValueError, r"step 1 .*t=0\.2 to t=0\.5"),
        (lambda k: walked(k, [1.0, 0.5, -0.1]), ValueError, r"t=-0\.1"),
        (lambda k: sampler.uniform(VP, 0), ValueError, "steps must be"),
        (lambda k: sampler.karras(VP, 3, rho=0.0), ValueError, "rho must be positive"),
        (lambda k: sampler.plan(VP, [1.2, 0.5]), ValueError, r"leaves.*t=1\.2"),
        (lambda k: sampler.plan(VP, [0.5, -0.1]), ValueError, r"leaves.*t=-0\.1"),
        (lambda k: sampler.plan(VP, [0.5, np.nan]), ValueError, "leaves"),
        (lambda k: sampler.plan(VP, [1.0, 0.5, 0.5]), ValueError, "must fall"),
        (lambda k: sampler.plan(VP, [1.0]), ValueError, "two times or more"),
        (lambda k: sampler.ddim(VP, eta=-1.0), ValueError, "eta must not be negative"),
        (lambda k: sampler.euler_maruyama(VP), ValueError, r"t_max=0\.99"),
    ],
)
def test_bad_input(call, error, message, key):
    """Each mistake is named with its mend before anything is compiled."""
    with pytest.raises(error, match=message):
        call(key)


EDM = process.gaussian(process.edm())
RUN = (sampler.ddim(VP), DENOISER, sampler.uniform(VP, 3), X)


def test_a_failing_denoiser_is_told_and_the_last_finite_state_kept(key):
    """Sample 1's denoiser gives NaN at the third step: its state of before stays, others go on."""
    plan = sampler.uniform(VP, 6)
    bad = float(plan.times[2])

    def broken(x, t, cond):
        return jnp.where((jnp.abs(t - bad) < 1e-6) & cond, jnp.nan, DENOISER(x, t))

    wrong = jnp.arange(4) == 1
    stepper = sampler.ddim(VP)
    out = sampler.sample(
        key, stepper, jax.tree_util.Partial(broken), plan, X, wrong, trajectory=True
    )
    good = sampler.sample(key, stepper, DENOISER, plan, X)
    np.testing.assert_array_equal(out.info.finite, ~wrong)
    np.testing.assert_array_equal(out.info.failed_at, [6, 2, 6, 6])
    np.testing.assert_array_equal(out.x[1], out.info.path.x[1, 1])
    np.testing.assert_allclose(out.x[2:], good.x[2:], atol=1e-6)


def test_blocks_are_bitwise_the_same_whatever_the_batch(key):
    """Seven samples in blocks of three, or one alone: the same bits; to rounding, the plain run."""
    plan, stepper = sampler.uniform(VP, 6), sampler.ancestral(VP)
    x = jnp.concatenate([X, X[:3] * 2])
    run = partial(sampler.sample, key, stepper, DENOISER, plan)
    whole = run(x, block=3, trajectory=True)
    plain = run(x, trajectory=True)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, plain)
    for i in range(7):
        alone = run(x[i : i + 1], index=jnp.array([i]), block=3)
        np.testing.assert_array_equal(alone.x[0], whole.x[i])
    with pytest.raises(ValueError, match="block must be at least 1"):
        run(x, block=0)


def test_brownian_noise_agrees_across_grids(key):
    """Euler-Maruyama on 64 and 128 steps of one path: far closer than with independent noise."""

    p = process.gaussian(process.cosine(t_max=0.99))

    def end(noise, steps):
        plan = sampler.uniform(p, steps, end=p.t_min)
        return sampler.sample(key, sampler.euler_maruyama(p), DENOISER, plan, X, noise=noise).x

    def gap(noise):
        return float(jnp.sqrt(jnp.mean((end(noise, 64) - end(noise, 128)) ** 2)))

    assert gap(core.brownian(p.t_max)) < 0.2 * gap(None)


def test_neighbouring_seeds_share_no_sample():
    """From equal starts, 4 seeds x 16 indices give 64 different samples."""
    x, plan = jnp.ones((16, 2)), sampler.uniform(VP, 3, end=0.1)
    runs = [
        sampler.sample(jax.random.key(seed), sampler.ancestral(VP), DENOISER, plan, x).x
        for seed in range(4)
    ]
    assert len(np.unique(np.concatenate(runs), axis=0)) == 64
