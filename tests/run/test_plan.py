"""Plans: counts against hand counts, on programs of the real compiler and of the CPU's."""

import importlib.util
import json
import re
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_experiment import tiny

from jaxinf import nets, process, score
from jaxinf.run import hlo
from jaxinf.run.chips import CHIPS, pod
from jaxinf.run.cli import main
from jaxinf.run.cost import cost
from jaxinf.run.groups import axes_of, replica_groups
from jaxinf.run.mesh import Rule, make_mesh
from jaxinf.run.plan import bounds, compile_for, memory_of, places, plan

libtpu = pytest.importorskip("libtpu", reason="pip install 'jaxinf[aot]'")
ROWS, WIDTH, LAYERS = 512, 256, 5


def perceptron(rows=ROWS, **changes):
    """Two layers, width -> 4 width -> width, by gradient descent."""

    def init(key):
        return {"in": jnp.ones((WIDTH, 4 * WIDTH)), "out": jnp.ones((4 * WIDTH, WIDTH))}

    def step(key, state, batch):
        def loss(state):
            hidden = jnp.tanh(jnp.matmul(batch, state["in"]))
            return jnp.square(jnp.matmul(hidden, state["out"])).mean()

        value, slope = jax.value_and_grad(loss)(state)
        return jax.tree.map(lambda a, b: a - b, state, slope), {"loss": value}

    def batch(seed, step, index):
        assert len(index) <= 2, "a plan needs no more than two rows"
        return np.zeros((len(index), WIDTH), np.float32)

    return tiny(init=init, step=step, batch=batch, batch_size=rows, **changes)


def loop(**changes):
    """A scan over layers, forward only."""

    def step(key, state, batch):
        out, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), batch, state)
        return state, {"loss": out.mean()}

    def batch(seed, step, index):
        return np.zeros((len(index), WIDTH), np.float32)

    fields = {"init": lambda key: jnp.ones((LAYERS, WIDTH, WIDTH)), "step": step, "batch": batch}
    return tiny(**(fields | {"batch_size": ROWS} | changes))


def sent(found, axis):
    return sum(one["sent"] for one in found.collectives if one["axes"] == (axis,))


def test_a_perceptron_whose_hidden_layer_is_divided():
    rules = (Rule("in", (None, "tensor")), Rule("out", ("tensor",)))
    found = plan(perceptron(rules=rules), pod("v5e:4x4"), "data=4,tensor=4")
    # Forward, and backward both for the weights, and for the hidden layer: five products.
    assert found.flops == pytest.approx(5 * 2 * ROWS * WIDTH * 4 * WIDTH / 16, rel=0.1)
    state, batch = 2 * 4 * WIDTH * 4 * WIDTH, 4 * ROWS * WIDTH
    assert found.memory["arguments"] == pytest.approx(state / 4 + batch / 4, rel=0.1)
    assert found.memory["alias"] == pytest.approx(state / 4, rel=0.1)
    # Copies sum the gradients of their part; the parts of a copy sum their products. The compiler
    # may sum the products in bfloat16, as it computes them.
    assert sent(found, "data") == pytest.approx(2 * (3 / 4) * state / 4, rel=0.1)
    products = 2 * (3 / 4) * batch / 4
    assert min(abs(sent(found, "tensor") / products - part) for part in (1, 0.5)) < 0.1
    assert found.fits
    assert found.bound in found.seconds


def test_a_perceptron_that_is_divided_over_all():
    found = plan(perceptron(), pod("v5e:4x4"), "fsdp=16")
    assert found.flops == pytest.approx(5 * 2 * ROWS * WIDTH * 4 * WIDTH / 16, rel=0.1)
    state, batch = 2 * 4 * WIDTH * 4 * WIDTH, 4 * ROWS * WIDTH
    assert found.memory["arguments"] == pytest.approx((state + batch) / 16, rel=0.1)
    assert {axis for one in found.collectives for axis in one["axes"]} == {"fsdp"}


def transformer(width, side, rows, **changes):
    """A training step of one loop over two blocks, recomputed in reverse."""
    vp = process.gaussian(process.cosine(t_max=0.99))
    net = nets.transformer(width, 2, heads=width // 64, scan=True, remat=True)
    training = nets.training(score.denoising(vp, net.apply, target=score.velocity), optax.sgd(1.0))
    x = np.zeros((side, side, 4), np.float32)

    def init(key):
        return training.init(net.init(key, x))

    def batch(seed, step, index):
        return score.Batch(np.stack([x] * len(index)))

    return tiny(init=init, step=training.step, batch=batch, batch_size=rows, **changes)


def test_divided_parameters_divide_all_of_a_transformer_s_work():
    width, side, rows = 256, 16, 8
    found = plan(transformer(width, side, rows), pod("v5e:2x2"), "fsdp=4")
    tokens, blocks = (side // 2) ** 2, 2
    # Forward, again in reverse mode, and backward for inputs and for weights: four times the
    # products of 12 width^2 numbers of a block with each token, 6 width^2 with each example, and
    # tokens^2 width for scores and for values, whose backward pass needs them twice.
    products = 4 * 2 * rows * blocks * (12 * tokens + 6) * width**2
    scores = 4 * 2 * rows * blocks * 2 * tokens**2 * width
    assert found.flops == pytest.approx((products + scores) / 4, rel=0.1)


def test_a_loop_counts_as_often_as_it_runs():
    rules = (Rule("", (None, "tensor")),)
    found = plan(loop(rules=rules), pod("v5e:4x4"), "data=4,tensor=4")
    assert found.flops == pytest.approx(LAYERS * 2 * ROWS * WIDTH**2 / 16, rel=0.1)
    counts = [one["count"] for one in found.collectives if one["axes"] == ("tensor",)]
    assert sum(counts) >= LAYERS
    assert not found.remarks


def test_slices_meet_over_the_slow_network():
    found = plan(perceptron(), pod("2*v5e:2x2"), "slice=2")
    state = 2 * 4 * WIDTH * 4 * WIDTH
    assert found.devices == 8
    assert sent(found, "slice") == pytest.approx(state / 4, rel=0.1)
    assert found.seconds["DCN slice"] == pytest.approx(state / 4 / CHIPS["v5e"].across, rel=0.1)


def test_what_does_not_fit_is_said_with_its_lines():
    def step(key, state, batch):
        big = jnp.sin(batch[:, None] * batch[None])
        return state, {"loss": jnp.sort(big, axis=1).mean()}

    def batch(seed, step, index):
        return np.zeros((len(index),), np.float32)

    wide = tiny(init=lambda key: jnp.ones(3), step=step, batch=batch, batch_size=2**17)
    found = plan(wide, pod("v5e:2x2"))
    assert not found.fits
    assert found.memory["total"] > found.memory["capacity"]
    assert re.search(r"test_plan\.py:\d+", " ".join(one["source"] for one in found.largest))
    assert "halve the batch" in found.remarks[0]


def test_memory_is_what_lives():
    """On devices that are there: arguments and outputs have the bytes of the arrays' shards."""
    mesh = make_mesh("fsdp=4")
    placed = places(perceptron(), mesh)
    compiled = compile_for(perceptron(), placed, mesh, "cpu")
    key, state, batch = jax.tree.map(lambda a: jax.device_put(_fill(a), a.sharding), placed)
    given = (state, batch)

    def bytes_of(tree):
        return sum(a.addressable_shards[0].data.nbytes for a in jax.tree.leaves(tree))

    memory = memory_of(compiled)
    unused = 8 + 4  # the key and the step's number
    assert 0 <= memory.arguments - bytes_of(given) <= unused
    out = compiled(key, np.uint32(0), *given)
    assert memory.outputs - bytes_of(out) <= 8 * len(jax.tree.leaves(out))  # and their pointers
    assert memory.alias == bytes_of(out[1])


def _fill(a):
    if jax.dtypes.issubdtype(a.dtype, jax.dtypes.prng_key):
        return jax.random.key(0)
    return jnp.ones(a.shape, a.dtype)


def test_the_cpu_s_program_is_read_as_well():
    mesh = make_mesh("data=8")
    compiled = compile_for(loop(), places(loop(), mesh), mesh, "cpu")
    found = cost(hlo.parse(compiled.as_text()), mesh)
    assert found.flops == pytest.approx(LAYERS * 2 * ROWS * WIDTH**2 / 8, rel=0.1)


@pytest.mark.parametrize(
    ("text", "groups"),
    [
        ("replica_groups={{0,2},{1,3}}, use", [[0, 2], [1, 3]]),
        ("replica_groups=[2,2]<=[4], x", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0), x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2] {'b'}, x", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([3,2,1,0]) {'a'}", [[3, 1], [2, 0]]),
        ("replica_groups=mesh['a'=4] {'a':(1)2}, x", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=4] {'a':(2)2}, x", [[0, 1], [2, 3]]),
        ("replica_groups={}, x", [[0, 1, 2, 3]]),
    ],
)
def test_groups_in_all_their_forms(text, groups):
    np.testing.assert_array_equal(replica_groups(text, 4), groups)


def test_groups_name_their_axes():
    mesh = make_mesh("data=2,fsdp=2,tensor=2")
    assert axes_of(np.array([[0, 1], [2, 3]]), mesh) == ("tensor",)
    assert axes_of(np.array([[0, 4]]), mesh) == ("data",)
    assert axes_of(np.array([[0, 1, 2, 3]]), mesh) == ("fsdp", "tensor")


HLO = """HloModule m, is_scheduled=true

FileNames
1 "a.py"

FileLocations
1 {file_name_id=1 function_name_id=1 line=7 end_line=7 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  %k = f32[8,4] custom-call(%x), custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"body":"x","cost_estimate":{"flops":"100","bytes_accessed":"10"}}}
  ROOT %t = (s32[], f32[8,4]) tuple(%j, %k)
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %end = s32[] constant(7)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (a: f32[8,4], w: f32[3,4,4]) -> f32[8,4] {
  %a = f32[8,4]{1,0:T(8,128)} parameter(0)
  %w = f32[3,4,4]{2,1,0} parameter(1)
  %zero = s32[] constant(3)
  %start = s32[] copy(%zero)
  %t.1 = (s32[], /*index=1*/f32[8,4]) tuple(%start, %a)
  %loop = (s32[], f32[8,4]) while(%t.1), condition=%condition, body=%body
  %b = f32[3,8,4]{2,1,0:S(1)} broadcast(%a), dimensions={1,2}, metadata={op_name="b" stack_frame_id=1}
  %c = f32[3,8,4] convolution(%b, %w), window={size=3 stride=2 pad=0_0 lhs_dilate=3}, dim_labels=0bf_0io->0bf
  ROOT %out = f32[8,4] get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_program_read_by_hand():
    program = hlo.parse(HLO)
    assert hlo.runs(program).times == {"main": 1, "body": 4, "condition": 5}
    found = cost(program, make_mesh("", jax.devices()[:1]))
    # Of a batch of products written as a convolution only those that meet a number count.
    assert found.flops == 4 * 100 + 2 * 3 * 8 * 4 * 4
    assert program.source(program.computations["main"]["b"]) == "a.py:7"


FUSED = """%add (q: s32[], d: s32[]) -> s32[] {
  %q = s32[] parameter(0)
  %d = s32[] parameter(1)
  %step = s32[] add(%d, %q)
  ROOT %once_more = s32[] add(%step, %d)
}

%body"""


@pytest.mark.parametrize(
    ("changes", "trips"),
    [
        ({"s32[] constant(1)": "s32[] constant(2)"}, 2),
        ({"s32[] constant(1)": "s32[] constant(3)"}, 2),
        ({"direction=LT": "direction=LE"}, 5),
        ({"s32[] add(%i, %one)": "s32[] fusion(%i, %one), calls=%add", "%body": FUSED}, 2),
        ({"s32[] add(%i, %one)": "s32[] subtract(%i, %one)", "constant(7)": "constant(-5)"}, 8),
        ({"s32[] add(%i, %one)": "s32[] multiply(%i, %one)"}, None),
        ({"s32[] add(%i, %one)": "s32[] copy(%i)"}, None),
    ],
)
def test_a_loop_s_trips_are_counted_in_its_steps(changes, trips):
    text = HLO
    for old, new in changes.items():
        text = text.replace(old, new, 1)
    program = hlo.parse(text)
    loop = program.computations["main"]["loop"]
    assert hlo.trip_count(program, "main", loop) == trips


PEELED = """HloModule m

%add (l: f32[], r: f32[]) -> f32[] {
  %l = f32[] parameter(0)
  %r = f32[] parameter(1)
  ROOT %s = f32[] add(%l, %r)
}

%all-reduce-scatter.1 (g: f32[8,4]) -> f32[1,4] {
  %g = f32[8,4] parameter(0)
  %sum = f32[8,4] all-reduce(%g), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part = f32[1,4] slice(%sum), slice={[0:1], [0:4]}
}

%all-reduce-scatter.2 (g.1: f32[8,4]) -> f32[1,4] {
  %g.1 = f32[8,4] parameter(0)
  %sum.1 = f32[8,4] all-reduce(%g.1), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part.1 = f32[1,4] slice(%sum.1), slice={[0:1], [0:4]}
}

%body (p: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %p = (s32[], f32[8,4]) parameter(0)
  %i = s32[] get-tuple-element(%p), index=0
  %x = f32[8,4] get-tuple-element(%p), index=1
  %one = s32[] constant(1)
  %j = s32[] add(%i, %one)
  %start = f32[1,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.1
  %done = f32[1,4] fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
  ROOT %t = (s32[], f32[8,4]) tuple(%j, %x)
}

%all-reduce-scatter.3 (g.2: f32[8,4]) -> f32[1,4] {
  %g.2 = f32[8,4] parameter(0)
  %sum.2 = f32[8,4] all-reduce(%g.2), channel_id=3, replica_groups={{0,1,2,3,4,5,6,7}}, to_apply=%add
  ROOT %part.2 = f32[1,4] slice(%sum.2), slice={[0:1], [0:4]}
}

%condition (p.1: (s32[], f32[8,4])) -> pred[] {
  %p.1 = (s32[], f32[8,4]) parameter(0)
  %i.1 = s32[] get-tuple-element(%p.1), index=0
  %end = s32[] constant(4)
  ROOT %less = pred[] compare(%i.1, %end), direction=LT
}

ENTRY %main (a: f32[8,4]) -> f32[8,4] {
  %a = f32[8,4] parameter(0)
  %zero = s32[] constant(0)
  %t.1 = (s32[], f32[8,4]) tuple(%zero, %a)
  %loop = (s32[], f32[8,4]) while(%t.1), condition=%condition, body=%body
  %last = f32[1,4] fusion(%a), kind=kCustom, calls=%all-reduce-scatter.2
  ROOT %out = f32[8,4] get-tuple-element(%loop), index=1
}
"""  # noqa: E501


def test_a_collective_of_two_fusions_counts_once_for_each_caller():
    """Fusions that start and end one share its channel; so does the loop's last turn, unrolled."""
    (found,) = cost(hlo.parse(PEELED), make_mesh("fsdp=8")).collectives
    assert (found.kind, found.axes, found.count) == ("reduce-scatter", ("fsdp",), 4 + 1)
    assert found.bytes == 5 * 8 * 4 * 4


def test_a_loop_without_an_end_is_told():
    program = hlo.parse(HLO.replace("s32[] constant(7)", "s32[] parameter(1)"))
    found = cost(program, make_mesh("", jax.devices()[:1]))
    assert "no fixed number of trips" in found.remarks[0]
    undeclared = HLO.replace('"flops":"100",', "")
    remarks = cost(hlo.parse(undeclared), make_mesh("", jax.devices()[:1])).remarks
    assert "declare no cost_estimate" in remarks[0]


CUDNN = """HloModule m

ENTRY %main (x: f32[4,8,8,2], w: f32[3,3,3,2]) -> f32[4,6,6,3] {
  %x = f32[4,8,8,2]{3,2,1,0} parameter(0)
  %w = f32[3,3,3,2]{3,2,1,0} parameter(1)
  %y = (f32[4,6,6,3]{3,2,1,0}, u8[0]{0}) custom-call(%x, %w), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convForward"
  %dy = f32[4,6,6,3]{3,2,1,0} get-tuple-element(%y), index=0
  %dx = (f32[4,8,8,2]{3,2,1,0}, u8[0]{0}) custom-call(%dy, %w), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardInput"
  %dw = (f32[3,3,3,2]{3,2,1,0}, u8[0]{0}) custom-call(%x, %dy), window={size=3x3}, dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn$convBackwardFilter"
  ROOT %out = f32[4,6,6,3]{3,2,1,0} add(%dy, %dy)
}
"""  # noqa: E501


def test_convolutions_of_gpus_are_counted():
    """Forward, and both gradients: the same products each."""
    found = cost(hlo.parse(CUDNN), make_mesh("", jax.devices()[:1]))
    assert found.flops == 3 * 2 * 4 * 6 * 6 * 3 * 3 * 2 * 3


def test_bounds_are_the_maker_s_figures():
    where = pod("v5e:4x4")
    found = bounds(197e12, 0.819e12, [], where, make_mesh("", where.devices))
    assert found == pytest.approx({"compute": 1.0, "memory": 1.0})
    assert pod("tpu7x:2x2x1").per_chip == 2
    assert pod("v4:2x2x1").per_chip == 1


EXPERIMENTS = Path(__file__).parents[2] / "experiments"
FILE = """
from dataclasses import dataclass
import jax.numpy as jnp
import numpy as np
from jaxinf.run import Experiment

@dataclass(frozen=True)
class Config:
    rows: int = 32

def build(config):
    return Experiment(
        init=lambda key: jnp.ones((128, 128)),
        step=lambda key, state, batch: (state, {"loss": jnp.sum(batch @ state)}),
        batch=lambda seed, step, index: np.ones((len(index), 128), np.float32),
        evaluate={},
        draw=lambda arrays: {},
        steps=1,
        batch_size=config.rows,
    )
"""


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    path = tmp_path / "small.py"
    path.write_text(FILE)
    return str(path)


def test_the_command_writes_a_table_and_json(file, tmp_path, capsys):
    path = tmp_path / "plan.json"
    call = ["plan", file, "--topology", "v5e:2x2", "--json", str(path)]
    assert main([*call, "--sweep", "mesh=fsdp=4;data=2,fsdp=2"]) == 0
    said = capsys.readouterr().out
    assert "mesh=data=2,fsdp=2" in said
    assert "* v5e:2x2" in said
    found = json.loads(path.read_text())
    assert [one["mesh"] for one in found] == [{"fsdp": 4}, {"data": 2, "fsdp": 2}]
    assert main([*call, "--sweep", "rows=64;128"]) == 0
    found = json.loads(path.read_text())
    more = found[1]["memory"]["arguments"] - found[0]["memory"]["arguments"]
    assert more == 64 * 128 * 4 / 4
    assert main(call) == 0
    said = capsys.readouterr().out
    assert "fits" in said
    assert "<- the bound" in said


@pytest.fixture
def pod_transformer():
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        import pod_transformer
    finally:
        sys.path.remove(str(EXPERIMENTS))
    return pod_transformer


@pytest.mark.soak
@pytest.mark.parametrize(
    ("topology", "mesh"), [("v5e:16x16", "fsdp=16"), ("2*v5e:8x16", "slice=2,fsdp=16")]
)
def test_a_billion_parameters_for_256_chips(pod_transformer, topology, mesh):
    config = pod_transformer.Config()
    experiment = pod_transformer.build(config)
    found = plan(experiment, pod(topology), mesh)
    width, tokens, images = config.width, (config.side // 2) ** 2, config.batch // 256
    # A block has 12 width^2 numbers that meet each token and 6 width^2 that meet each image.
    # Forward, again in reverse mode, and backward for inputs and for weights; scores and values.
    products = 4 * 2 * images * config.depth * (12 * tokens + 6) * width**2
    scores = 4 * 2 * images * config.depth * 2 * tokens**2 * width
    assert found.flops == pytest.approx(products + scores, rel=0.1)
    # Parameters, their average and two moments in float32, over 16 chips.
    params = jax.eval_shape(experiment.init, jax.random.key(0)).params
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    assert size > 1e9
    assert found.memory["arguments"] == pytest.approx(4 * 4 * size / 16, rel=0.1)
    # The products' parameters are gathered forward and in reverse, and their gradients are summed
    # to where they lie, all in bfloat16; the images' are smaller than their parameters.
    whole = 2 * config.depth * 12 * width**2
    assert sent(found, "fsdp") == pytest.approx(3 * whole * 15 / 16, rel=0.1)


def test_the_transformer_s_rules_fit_it(pod_transformer):
    config = pod_transformer.Config(width=128, depth=2, side=8, batch=512)
    where = pod("v5e:16x16")
    _, state, batch = places(
        pod_transformer.build(config), make_mesh("fsdp=64,tensor=4", where.devices)
    )
    block = state.params["blocks"]["qkv"]["kernel"]
    assert block.sharding.shard_shape(block.shape) == (2, 2, 96)
    assert batch[0].shape == (512, 8, 8, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology", "v9:2x2"], "there is no topology 'v9:2x2'. Those known are like v4:"),
        (["--topology", "v5e:3x5"], "there is no topology 'v5e:3x5'"),
        (["--topology", "v5e:2x2", "--mesh", "fsdp=3"], "3 places for 4 devices"),
        (["--topology", "v5e:2x2", "--rows", "6"], "batch_size 6 is not divided by the mesh's 4"),
        (["--topology", "v5e:2x2", "--rule", "nowhere=fsdp"], "finds no leaf"),
        (["--topology", "v5e:2x2", "--sweep", "mesh"], "a sweep is NAME=VALUE;VALUE"),
        (["--topology", "h100:8"], "CUDA plugin's compiler"),
    ],
)
def test_what_is_wrong_is_said_at_once(arguments, message, file, capsys, monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name: None if "cuda" in name else found(name)
    )
    assert main(["plan", file, *arguments]) == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert message in " ".join(said.split())
