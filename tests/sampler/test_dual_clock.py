"""The network's clock and the integrator's: one function of time, or one number a step."""

import types

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxinf import core, process, sampler, score
from jaxinf.sampler.dual_clock import dual_clock, tuned

KEY = jax.random.key(0)
VP = process.gaussian(process.cosine(t_max=0.99))
EDM = process.gaussian(process.edm())
ZERO = process.gaussian(process.cosine())
EPS = np.finfo(np.float32).eps
SILENT = core.Independent(KEY, 0, 0, (2,), jnp.float32)
STEPPERS = {
    "ddim": sampler.ddim,
    "ancestral": sampler.ancestral,
    "heun": sampler.heun,
    "dpm_solver": lambda p: sampler.dpm_solver(p, 2),
}


@core.record
class Scaled:
    """A clock of the same zero, within the process."""

    by: core.Leaf

    def __call__(self, t):
        return self.by * t


def oracle(p):
    return score.oracle(p, core.gaussian(jnp.array([0.7, -0.2]), core.Diagonal(0.6)))


def start(p, batch=8):
    return p.prior().sample(jax.random.key(5), (batch, 2))


def test_no_clock_is_the_stepper():
    """None returns the wrapped stepper itself."""
    stepper = sampler.heun(VP)
    assert dual_clock(stepper, None) is stepper


@pytest.mark.parametrize(
    ("name", "p", "kept"),
    [
        *(("ddim", p, kept) for p in (VP, EDM) for kept in (process.x0, process.v, process.eps)),
        ("ancestral", VP, process.eps),
        ("heun", EDM, process.eps),
        ("dpm_solver", VP, process.x0),
    ],
)
def test_the_same_clock_is_the_stepper_to_rounding(name, p, kept):
    """The identity, as a function and as taus: 4 ulp a step, times the conversion's condition.

    x0 = (x - sigma e) / alpha loses a digits' share of |x| / alpha(t), which the step multiplies by
    alpha(s): so the noise costs the largest ratio of alphas, and v and x0 nothing.
    """
    stepper, denoiser, x = STEPPERS[name](p), oracle(p), start(p)
    plan = sampler.karras(p, 6) if p is EDM else sampler.uniform(p, 6)
    plain = sampler.sample(KEY, stepper, denoiser, plan, x, trajectory=True)
    alpha = np.array([float(p.alpha(t)) for t in plan.times])
    condition = max(alpha[1:] / alpha[:-1]) if kept is process.eps else 1.0
    largest = max(float(jnp.abs(x).max()), float(jnp.abs(plain.info.path.x).max()))
    for same in (
        dual_clock(stepper, lambda t: t, kept),
        tuned(stepper, jnp.asarray(plan.times[:-1]), kept),
    ):
        out = sampler.sample(KEY, same, denoiser, plan, x).x
        atol = 4 * plan.steps * EPS * largest * condition
        np.testing.assert_allclose(out, plain.x, rtol=0, atol=atol)
        assert plan.calls(same) == plan.calls(stepper)


def by_hand(p, kept, mean, c, x, t, s, tau):
    """One DDIM step on N(mean, c^2) with the network at tau, from the formulas."""
    a_t, a_s, a, s_t, s_s, sigma = (
        float(f(r)) for f, r in zip([p.alpha] * 3 + [p.sigma] * 3, [t, s, tau] * 2, strict=True)
    )
    power = a**2 * c**2 + sigma**2
    clean = mean + a * c**2 * (x - a * mean) / power
    noise = sigma * (x - a * mean) / power
    if kept is process.eps:
        clean = (x - s_t * noise) / a_t
    if kept is process.v:
        v = a * noise - sigma * clean
        clean = a_t * x - s_t * v  # alpha^2 + sigma^2 = 1 here
    return a_s * clean + s_s * (x - a_t * clean) / s_t


@pytest.mark.parametrize("kept", [process.eps, process.v, process.x0], ids=["eps", "v", "x0"])
def test_a_shifted_clock_is_the_affine_step(kept, x64):
    """Gaussian data: three DDIM steps by hand, with tau = 0.8 t and with taus of their own."""
    mean, c = np.array([0.7, -0.2]), 0.6
    plan, x = sampler.plan(VP, [0.9, 0.5, 0.3, 0.1]), jnp.array([[0.4, -1.3], [1.1, 0.2]])
    taus = np.array([0.95, 0.35, 0.31])
    for stepper, network in (
        (dual_clock(sampler.ddim(VP), Scaled(0.8), kept), 0.8 * plan.times[:-1]),
        (tuned(sampler.ddim(VP), taus, kept), taus),
    ):
        wanted = np.asarray(x)
        for t, s, tau in zip(plan.times[:-1], plan.times[1:], network, strict=True):
            wanted = by_hand(VP, kept, mean, c, wanted, t, s, tau)
        out = sampler.sample(KEY, stepper, oracle(VP), plan, x).x
        np.testing.assert_allclose(out, wanted, rtol=1e-12)


def test_which_times_the_network_sees():
    """Heun calls at t and s: the clock's values there; tau and s tau / t where tuned."""

    def seen(stepper, *row):
        times = []

        def denoise(x, t):
            times.append(float(t))
            return 0.5 * x

        state = stepper.init(jnp.array([0.3, 1.0]))
        with jax.disable_jit():
            stepper.step(denoise, SILENT, state, jnp.asarray(0.8), jnp.asarray(0.6), *row)
        return times

    np.testing.assert_allclose(seen(dual_clock(sampler.heun(VP), Scaled(0.9))), [0.72, 0.54])
    stepper = tuned(sampler.heun(VP), jnp.array([0.4]))
    row = jax.tree.map(lambda a: a[0], stepper.table(jnp.array([0.8, 0.6])))
    np.testing.assert_allclose(seen(stepper, row), [0.4, 0.3], rtol=1e-6)


def test_composes_and_compiles_once():
    """Under jit(shard_map) on eight devices as plain; gradients by the clock; one trace."""
    plan, x, denoiser = sampler.uniform(VP, 5), start(VP, 16), oracle(VP)
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    spec = PartitionSpec("data")
    base, taus = sampler.ancestral(VP), 0.9 * jnp.asarray(plan.times[:-1])
    for stepper in (dual_clock(base, Scaled(0.9)), tuned(base, taus)):

        def run(x, index, stepper=stepper):
            return sampler.sample(KEY, stepper, denoiser, plan, x, index=index).x

        sharded = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=(spec, spec), out_specs=spec))
        np.testing.assert_allclose(sharded(x, jnp.arange(16)), run(x, None), atol=1e-5)
        gradient = jax.grad(
            lambda stepper: jnp.sum(sampler.sample(KEY, stepper, denoiser, plan, x).x)
        )(stepper)
        chex.assert_tree_all_finite(gradient)
        clock = gradient.taus if hasattr(gradient, "taus") else gradient.network_time.by
        assert bool(jnp.all(clock != 0))

    traces = []

    @core.record
    class Counting:
        scale: core.Leaf

        def __call__(self, x, t, cond=None):
            traces.append(1)
            return self.scale * x

    for make in (lambda by: dual_clock(base, Scaled(by)), lambda by: tuned(base, by * taus)):
        traces.clear()
        for number in (0.8, 0.9):
            sampler.sample(KEY, make(number), Counting(number), plan, x)
        assert len(traces) == 1


def test_at_no_signal():
    """alpha(t_max) = 0: v and the clean example may be kept, the noise may not."""
    plan, x = sampler.uniform(ZERO, 4), start(ZERO)
    for kept in (process.v, process.x0):
        out = sampler.sample(
            KEY, dual_clock(sampler.ddim(ZERO), Scaled(0.9), kept), oracle(ZERO), plan, x
        )
        assert bool(jnp.all(out.info.finite))
    for make in (
        lambda kept: dual_clock(sampler.ddim(ZERO), Scaled(0.9), kept),
        lambda kept: tuned(sampler.ddim(ZERO), jnp.array([0.5]), kept),
    ):
        for kept in (process.eps, process.score):
            with pytest.raises(ValueError, match=r"take process\.v, process\.x0"):
                make(kept)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: dual_clock(sampler.ddim(VP), 0.5), TypeError, r"sampler\.tuned\(stepper, taus\)"),
        (lambda: dual_clock(TOKENS, Scaled(0.5)), TypeError, "need a Gaussian process"),
        (lambda: tuned(TOKENS, jnp.ones(1)), TypeError, "need a Gaussian process"),
        (lambda: tuned(sampler.ddim(VP), jnp.array(0.5)), ValueError, "must be a vector"),
        (lambda: tuned(sampler.ddim(VP), jnp.array([0.5, 1.0])), ValueError, r"\(0, t_max=0\.99\]"),
        (lambda: tuned(sampler.ddim(VP), jnp.array([0.5, 0.0])), ValueError, r"\(0, t_max=0\.99\]"),
        (
            lambda: sampler.sample(
                KEY,
                tuned(sampler.ddim(VP), jnp.array([0.5, 0.4])),
                oracle(VP),
                sampler.uniform(VP, 3),
                start(VP),
            ),
            ValueError,
            "one tau a step, got 2 for a plan of 3",
        ),
    ],
)
def test_bad_input(call, error, message):
    """Each mistake is named with its mend."""
    with pytest.raises(error, match=message):
        call()


@core.record
class Tokens:
    """A stepper whose process is not Gaussian."""

    process: core.Leaf

    def init(self, x):
        return sampler.State(x)

    def step(self, denoise, noise, state, t, s):
        return state, None

    def calls(self, t, s):
        return 1


TOKENS = Tokens(types.SimpleNamespace(t_max=1.0))
