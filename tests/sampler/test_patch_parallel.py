"""Rows over devices: synchronous steps are one device's, displaced ones err by O(step)."""

import contextlib
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from jaxinf import core, nets, process, sampler, score
from jaxinf.run.mesh import make_mesh

KEY = jax.random.key(0)
P = process.gaussian(process.cosine(t_max=0.99))
PLAN = sampler.uniform(P, 6, 0.05)
LAYERS, ROWS, COND = 2, 8, np.array([0, 2])
ORACLE = score.oracle(P, core.gaussian(jnp.zeros(1), core.Diagonal(1.0)))


def mesh(devices, data=1):
    return make_mesh(f"sequence={devices},data={data}", jax.devices()[: devices * data])


def start(rows=ROWS, dtype=jnp.float32):
    return P.prior().sample(jax.random.key(5), (2, rows, 4, 1)).astype(dtype)


@core.record
class Neighbourly:
    """A denoiser whose every pixel hears of every row, and of where it is."""

    scale: core.Leaf

    def mixed(self, x, whole):
        place = jnp.linspace(-1.0, 2.0, whole.shape[0], dtype=x.dtype)
        return self.scale * x + 0.5 * jnp.tensordot(place, jnp.tanh(whole), 1)[None]

    def __call__(self, x, t, cond=None):
        return self.mixed(x, x)

    def on_band(self, x, t, cond, band, context):
        whole = band.whole(x, context.get("x", jnp.zeros_like(x)))
        return self.mixed(x, whole), {"x": x}


def transformer(dtype=jnp.float32):
    """A denoiser by a transformer away from its start, where gates are zero."""
    net = nets.transformer(8, LAYERS, heads=2, patch=1, classes=3, dtype=dtype)
    params = net.init(KEY, jax.ShapeDtypeStruct((ROWS, 4, 1), jnp.float32))
    rng = np.random.default_rng(0)
    params = jax.tree.map(
        lambda a: jnp.asarray(a + 0.2 * rng.normal(size=a.shape), jnp.float32), params
    )
    return score.denoiser(P, net.apply, params, predicts=score.v)


def divided(key, stepper, denoiser, plan, x, cond=None, *, synchronous=4, **kwargs):
    pair = sampler.patch_parallel(stepper, denoiser, x, cond, synchronous=synchronous)
    return sampler.sample(key, *pair, plan, x, cond, **kwargs)


def on_devices(devices, *args, data=1, **kwargs):
    with jax.set_mesh(mesh(devices, data)):
        return divided(KEY, *args, **kwargs)


@pytest.mark.parametrize(
    ("stepper", "devices"),
    [
        (sampler.ancestral(P), 4),
        (sampler.ancestral(P), 8),
        (sampler.unipc(P), 4),
        (sampler.early_stopping(sampler.ddim(P), 0.4), 4),
        (sampler.time_shift(sampler.ddim(P), 4, cutoff=0.1), 4),
    ],
    ids=["noise", "noise_8", "multistep", "stops", "statistics"],
)
def test_synchronous_is_the_single_device(stepper, devices):
    """The same samples, with the noise and the statistics of whole examples."""
    one = sampler.sample(KEY, stepper, Neighbourly(0.4), PLAN, start())
    out = on_devices(
        devices, stepper, Neighbourly(0.4), PLAN, start(), synchronous=6, data=8 // devices
    )
    np.testing.assert_allclose(out.x, one.x, atol=1e-5)
    chex.assert_trees_all_close(out.state.inner, one.state, atol=1e-5)


def test_synchronous_transformer_is_the_single_device():
    """Positions, keys and values of all bands, conditions and guidance."""
    denoiser = score.guided(transformer(), 2.0, null=3)
    one = sampler.sample(KEY, sampler.ddim(P), denoiser, PLAN, start(), COND).x
    with jax.set_mesh(mesh(4, data=2)):
        out = divided(KEY, sampler.ddim(P), denoiser, PLAN, start(), COND, synchronous=6)
    np.testing.assert_allclose(out.x, one, atol=1e-5)
    for array in (out.x, *jax.tree.leaves(out.state.context)):  # no device holds the whole
        assert array.sharding.spec == PartitionSpec("data", "sequence")


def by_hand(x, before, t, s, devices):
    """One DDIM step in NumPy in which each band sees the others as they were."""
    out = np.empty_like(x)
    for rows in np.split(np.arange(len(x)), devices):
        whole = before.copy()
        whole[rows] = x[rows]
        place = np.linspace(-1.0, 2.0, len(x))
        clean = 0.4 * x[rows] + 0.5 * np.tensordot(place, np.tanh(whole), 1)
        a_t, a_s, s_t, s_s = (float(f(r)) for f in (P.alpha, P.sigma) for r in (t, s))
        out[rows] = a_s * clean + s_s * (x[rows] - a_t * clean) / s_t
    return out


@pytest.mark.parametrize("devices", [4, 8])
def test_displaced_steps_see_the_last_step(devices, x64):
    """Each step by hand, in float64: two synchronous ones at the start and after a rise."""
    plan = sampler.restart(PLAN, (0.3, 0.7), 1)
    x = start(dtype=jnp.float64)
    out = on_devices(
        devices, sampler.ddim(P), Neighbourly(0.4), plan, x, synchronous=2, trajectory=True
    )
    states = np.concatenate([np.asarray(x)[None], out.info.path.x])
    begun, displaced = 0, 0
    for i, (t, s) in enumerate(zip(plan.times[:-1], plan.times[1:], strict=True)):
        if s > t:
            begun = i + 1
            continue
        before = states[i] if i - begun < 2 else states[i - 1]
        displaced += i - begun >= 2
        for sample in range(2):
            wanted = by_hand(states[i, sample], before[sample], t, s, devices)
            np.testing.assert_allclose(states[i + 1, sample], wanted, rtol=1e-11, atol=1e-11)
    assert begun > 2
    assert displaced == plan.steps - 5


def test_displacement_errs_by_the_first_order(x64):
    """Halving the steps halves what displacement adds, under a stepper of third order.

    One program serves both: the coarse walk goes on past the end.
    """
    denoiser, stepper, x = transformer(jnp.float64), sampler.dpm_solver(P, 3), start()
    x = x.astype(jnp.float64)
    errors = []
    for steps in (32, 64):
        down = np.linspace(0.9, 0.2, steps + 1)
        times = np.concatenate([down, np.linspace(0.2, 0.1, 64 - steps + 1)[1:]])
        plan = sampler.plan(P, times)
        one = sampler.sample(KEY, stepper, denoiser, plan, x, COND, trajectory=True)
        out = on_devices(
            4, stepper, denoiser, plan, x, COND, synchronous=steps // 8, trajectory=True
        )
        difference = out.info.path.x[steps - 1] - one.info.path.x[steps - 1]
        errors.append(float(jnp.sqrt(jnp.mean(difference**2))))
    assert errors[1] > 1e-8
    assert abs(np.log2(errors[0] / errors[1]) - 1) < 0.15


def test_one_gather_a_layer_and_step():
    """The compiled step: a branch that waits and one that does not, a gather a layer in each.

    Besides, the one number a sample that says whether it is finite.
    """
    denoiser, x = transformer(), start()
    with jax.set_mesh(mesh(4)):
        run = jax.jit(lambda d, x: divided(KEY, sampler.ancestral(P), d, PLAN, x, COND).x)
        text = run.lower(denoiser, x).compile().as_text()
    moved = {}
    for computation in re.split(r"\n(?=\S)", text):
        found = re.findall(
            r"= (\S+) (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)"
            r"(?:-start)?\(",
            computation,
        )
        if found:
            moved[computation.split(" ", 1)[0]] = [kind for _, kind in found]
            sizes = [shape for shape, kind in found if kind == "all-reduce"]
            assert all(shape.startswith("pred[2]") for shape in sizes)
    counts = sorted(moved.values())
    assert counts == [["all-gather"] * LAYERS, ["all-gather"] * LAYERS, ["all-reduce"]]


@pytest.mark.parametrize("displaced", [False, True])
def test_what_is_gathered(displaced):
    """A displaced band sends what was there before the step, so that nothing need wait for it."""
    band, rows = core.Band("sequence", displaced), PartitionSpec("sequence")
    fresh, stale = jnp.arange(8.0), -jnp.arange(8.0)
    with jax.set_mesh(mesh(4)):
        whole = jax.shard_map(band.whole, in_specs=rows, out_specs=rows)
        jaxpr = jax.make_jaxpr(whole)(fresh, stale).eqns[0].params["jaxpr"]
        (gather,) = [e for e in jaxpr.eqns if "all_gather" in e.primitive.name]
        assert gather.invars[0] is jaxpr.invars[1 if displaced else 0]
        seen = np.asarray(jax.jit(whole)(fresh, stale)).reshape(4, 8)
    for i in range(4):
        wanted = -np.arange(8.0) if displaced else np.arange(8.0)
        wanted[2 * i : 2 * i + 2] = [2 * i, 2 * i + 1]
        np.testing.assert_array_equal(seen[i], wanted)


def test_composes_and_compiles_once():
    """Gradients are the single device's; other numbers trace nothing; inside a shard_map."""
    stepper, plan = sampler.ddim(P), sampler.uniform(P, 3, 0.1)

    def total(scale, run, **kwargs):
        return jnp.sum(run(KEY, stepper, Neighbourly(scale), plan, start(), **kwargs).x ** 2)

    one = jax.grad(total)(0.4, sampler.sample)
    with jax.set_mesh(mesh(4, 2)):
        slope = jax.grad(total)(0.4, divided, synchronous=3)
        np.testing.assert_allclose(slope, one, rtol=1e-5)
        traces = []

        @core.record
        class Counting(Neighbourly):
            def on_band(self, *args):
                traces.append(1)
                return Neighbourly.on_band(self, *args)

        def run(x, index, scale=0.3):
            return divided(KEY, stepper, Counting(scale), plan, x, synchronous=1, index=index).x

        whole = run(start(), jnp.arange(2))
        count = len(traces)
        run(start(), jnp.arange(2), 0.5)
        assert len(traces) == count + 1  # the context's shape alone is asked for again
        data = PartitionSpec("data")
        inner = jax.shard_map(run, in_specs=(data, data), out_specs=data, axis_names={"data"})
        np.testing.assert_allclose(jax.jit(inner)(start(), jnp.arange(2)), whole, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"mesh": None}, ValueError, r"mesh in force is none; call under jax\.set_mesh"),
        ({"mesh": ("data", AxisType.Auto)}, ValueError, "mesh in force has the axes"),
        ({"mesh": ("sequence", AxisType.Explicit)}, ValueError, "automatic mesh axis"),
        ({"x": jnp.zeros((2, 6, 4, 1))}, ValueError, r"must divide .* pad the rows"),
        ({"synchronous": 0}, ValueError, "at least 1, got 0"),
        ({"synchronous": 7}, ValueError, "has 6 steps.*pass synchronous=6"),
        ({"stepper": sampler.heun(P)}, ValueError, "2 times a step.*take one of a single call"),
        ({"denoiser": ORACLE}, TypeError, "Oracle, has no on_band"),
        (
            {"denoiser": score.denoiser(P, nets.mlp().apply, {}, predicts=score.v)},
            TypeError,
            "works on whole examples alone",
        ),
        (
            {"denoiser": score.guided(ORACLE, 2.0, null=1, rescale=0.7)},
            ValueError,
            "pass rescale=None",
        ),
    ],
)
def test_bad_input(change, error, message):
    """Each mistake is named with its mend."""
    axis = change.pop("mesh", ("sequence", AxisType.Auto))
    given = {"stepper": sampler.ddim(P), "denoiser": Neighbourly(0.4), "x": start(), **change}
    args = [given.pop(name) for name in ("stepper", "denoiser")]

    x = given.pop("x")
    over = contextlib.nullcontext()
    if axis is not None:
        over = jax.set_mesh(jax.make_mesh((4,), axis[:1], axis_types=axis[1:]))
    with over, pytest.raises(error, match=message):
        divided(KEY, *args, PLAN, x, COND, **given)
