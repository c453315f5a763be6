import gc
import itertools
import json
import re
import sys
import weakref

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_experiment import ROWS, batch, draw, go, init, lines, step, tiny

from jaxinf.run import Experiment, Study, check, metrics, training
from jaxinf.run.folder import fresh


def by_hand(seed, steps):
    """The weights after so many steps, from the definition of an experiment's state."""
    first, second, _ = jax.random.split(jax.random.key(seed), 3)
    state = init(first)
    for index in range(steps):
        data = batch(seed, index, np.arange(ROWS))
        state, _ = step(jax.random.fold_in(second, index), state, data)
    return state["weights"]


def test_writes_everything_and_follows_the_definition(tmp_path, capsys):
    folder = go(
        tiny(), tmp_path, seed=3, document="A title.\n\nMore of it.", command="jaxinf run x"
    )
    assert capsys.readouterr().out.splitlines()[-1] == str(folder / "report.md")
    assert re.fullmatch(r"\d{8}-\d{6}", folder.name)

    content = json.loads((folder / "config.json").read_text())
    assert content["config"] == {"rate": 0.1}
    assert content["seed"] == 3
    assert content["command"] == "jaxinf run x"
    assert content["jax"] == jax.__version__
    assert {"jaxlib", "jaxinf", "python", "device", "platform"} <= set(content)

    written = lines(folder)
    assert [line["step"] for line in written] == list(range(6))
    assert [line["metrics"]["loss"] for line in written] == [1, 2, 3, 4, 5, 6]
    assert all(line["time"] >= 0 for line in written)

    arrays = np.load(folder / "arrays.npz")
    assert set(arrays) == {"final.weights", "final.largest", "noise"}
    # Compiled in one program here, step by step there: six steps of a few roundings each.
    np.testing.assert_allclose(arrays["final.weights"], by_hand(3, 6), rtol=1e-5, atol=1e-6)

    report = (folder / "report.md").read_text()
    assert report.startswith("# A title.\n\nMore of it.\n")
    assert "Status: **finished**" in report
    assert f"| final.largest | {arrays['final.largest']:.6g} |" in report
    assert f"| noise | {arrays['noise']:.6g} |" in report
    assert "| rate | 0.1 |" in report
    for part in ("compile", "train", "evaluate final", "evaluate noise"):
        assert re.search(rf"\| {part} \| [\d.e-]+ \|", report), part
    links = re.findall(r"!\[.*?\]\((.*?)\)", report)
    assert set(links) == {"figures/weights.png", "figures/training-curve.png"}
    for link in links:
        assert (folder / link).read_bytes().startswith(b"\x89PNG")


def test_state_survives_with_typed_keys(tmp_path):
    folder = go(tiny(), tmp_path)
    form = jax.eval_shape(init, jax.random.key(0))
    with ocp.StandardCheckpointer() as checkpointer:
        state = checkpointer.restore(folder / "state", {"state": form})["state"]
    np.testing.assert_array_equal(state["weights"], np.load(folder / "arrays.npz")["final.weights"])
    assert state["count"] == 6
    assert jax.dtypes.issubdtype(state["key"].dtype, jax.dtypes.prng_key)
    expected = jax.random.split(jax.random.key(0), 3)[0]
    np.testing.assert_array_equal(jax.random.key_data(state["key"]), jax.random.key_data(expected))


def test_seeds_agree_with_single_runs(tmp_path):
    drawn = {}

    def spy(arrays):
        drawn.update(arrays)
        return draw(arrays)

    folder = go(tiny(draw=spy), tmp_path, seed=5, seeds=3)
    together = np.load(folder / "arrays.npz")["final.weights"]
    assert together.shape == (3, 3)
    alone = [
        np.load(go(tiny(), tmp_path, seed=seed) / "arrays.npz")["final.weights"]
        for seed in (5, 6, 7)
    ]
    np.testing.assert_allclose(together, np.stack(alone), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(drawn["final"]["weights"], together[0])
    assert isinstance(drawn["noise"], np.ndarray | np.generic)
    assert lines(folder)[2]["metrics"]["loss"] == [3, 3, 3]
    report = (folder / "report.md").read_text()
    assert "| result | seed 5 | seed 6 | seed 7 | median |" in report
    largest = together.max(1)
    row = " | ".join(f"{value:.6g}" for value in [*largest, np.median(largest)])
    assert f"| final.largest | {row} |" in report


@pytest.mark.parametrize("seeds", [1, 2])
def test_step_compiles_once(tmp_path, seeds):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(step, n=1)
    go(tiny(step=once), tmp_path, seeds=seeds)


def test_metrics_are_fetched_late_and_once_a_line(tmp_path, monkeypatch):
    events = []
    compiled, get = training.compile_step, jax.device_get

    def compile_step(*arguments):
        inner, steps = compiled(*arguments), itertools.count()

        def recorded(key, index, state, batch):
            out = inner(key, index, state, batch)
            events.append(("dispatch", next(steps)))
            return out

        return recorded

    def device_get(tree):
        got = get(tree)
        events.append(("fetch", [int(entry["loss"]) - 1 for entry in got]))
        return got

    monkeypatch.setattr(metrics, "LINES", 5)
    monkeypatch.setattr(training, "compile_step", compile_step)
    monkeypatch.setattr(metrics.jax, "device_get", device_get)
    folder = go(tiny(steps=48), tmp_path)

    written = [line["step"] for line in lines(folder)]
    assert written == [0, 10, 20, 30, 40, 47]
    fetches = [(place, what) for place, (kind, what) in enumerate(events) if kind == "fetch"]
    assert len(fetches) == len(written)
    assert [index for _, what in fetches for index in what] == list(range(48))
    for place, what in fetches[:-1]:
        dispatched = [index for kind, index in events[:place] if kind == "dispatch"]
        assert max(what) + 1 in dispatched


def test_long_runs_write_few_lines(tmp_path):
    folder = go(tiny(steps=601), tmp_path)
    written = [line["step"] for line in lines(folder)]
    assert 200 <= len(written) <= 500
    assert written[0] == 0
    assert written[-1] == 600


def test_a_single_step(tmp_path):
    folder = go(tiny(steps=1), tmp_path, profile=True)
    assert [line["step"] for line in lines(folder)] == [0]
    assert "Steps 0 to 0 are profiled" in (folder / "report.md").read_text()


def test_profile(tmp_path):
    folder = go(tiny(steps=24), tmp_path, profile=True)
    assert list((folder / "profile").rglob("*.xplane.pb"))
    assert "Steps 10 to 19 are profiled" in (folder / "report.md").read_text()


def test_tensorboard_is_said(tmp_path, monkeypatch):
    folder = go(tiny(), tmp_path / "with")
    assert list((folder / "tensorboard").glob("events*"))
    assert "TensorBoard events are in `tensorboard/`" in (folder / "report.md").read_text()
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    folder = go(tiny(), tmp_path / "without")
    assert not (folder / "tensorboard").exists()
    assert "No TensorBoard events" in (folder / "report.md").read_text()


def test_runs_never_share_a_folder(tmp_path):
    found = [fresh(tmp_path, "tiny") for _ in range(3)]
    folders = {folder.path for folder in found}
    for folder in found:
        folder.release()
    assert len(folders) == 3
    assert all(folder.is_dir() for folder in folders)
    (tmp_path / "taken").write_text("")
    with pytest.raises(OSError, match="taken"):
        fresh(tmp_path, "taken")


def test_a_config_that_is_none(tmp_path):
    with pytest.raises(TypeError, match=r"must be a dataclass or a mapping, got int\. Pass Config"):
        go(tiny(), tmp_path, config=3)
    assert not list(tmp_path.iterdir())


def test_data_free_steps_and_other_dtypes(tmp_path):
    experiment = tiny(
        batch=lambda seed, step, index: (),
        step=lambda key, state, batch: (state, {}),
        evaluate={"file": lambda key, state: (jnp.ones((2,), jnp.bfloat16), key)},
        draw=lambda arrays: {},
    )
    folder = go(experiment, tmp_path)
    arrays = np.load(folder / "arrays.npz")
    assert arrays["file.0"].dtype == np.float32
    assert arrays["file.1"].dtype == np.uint32
    assert "training-curve" not in (folder / "report.md").read_text()


def test_study(tmp_path):
    study = Study(
        run=lambda key: {"table": {"error": jax.random.normal(key), "rows": np.arange(3)}},
        draw=lambda arrays: {},
        notes=lambda arrays: f"| rows |\n| --- |\n| {arrays['table']['rows'].sum()} |",
    )
    folder = go(study, tmp_path, seed=2)
    report = (folder / "report.md").read_text()
    assert (
        "| table.error | {:.6g} |".format(np.load(folder / "arrays.npz")["table.error"]) in report
    )
    assert "## Notes\n\n| rows |\n| --- |\n| 3 |" in report
    assert not (folder / "metrics.jsonl").exists()
    with pytest.raises(ValueError, match="for an Experiment"):
        go(study, tmp_path, seeds=2)


@pytest.mark.parametrize(
    ("field", "value", "mend"),
    [
        ("steps", 0, "must be a whole number >= 1, got 0"),
        ("batch_size", 0, "must be a whole number >= 1, got 0"),
        ("step", None, "must be a function, got None"),
        ("notes", "text", "must be a function"),
        ("evaluate", [step], r'Write evaluate=\{"samples": samples\}'),
        ("evaluate", {"a": 3}, "Pass the function, not its result"),
        ("evaluate", {"a/b": step}, "rename it"),
        ("rules", ("qkv=fsdp",), "must be a tuple of jaxinf"),
    ],
)
def test_check(field, value, mend):
    experiment = object.__new__(Experiment)  # around the checks of types that tests switch on
    for name, right in vars(tiny()).items():
        object.__setattr__(experiment, name, right)
    object.__setattr__(experiment, field, value)
    with pytest.raises((TypeError, ValueError), match=mend):
        check(experiment)


def test_seeds_below_one(tmp_path):
    with pytest.raises(ValueError, match=r"seeds must be >= 1, got 0\. Pass seeds=1"):
        go(tiny(), tmp_path, seeds=0)


def test_a_run_that_ended_holds_nothing(tmp_path):
    """What drawing leaves behind would hold the frames of the caller, and the training state."""

    class Thing:
        """What a caller has."""

    def call():
        thing = Thing()
        go(tiny(), tmp_path)
        return weakref.ref(thing)

    gc.disable()
    try:
        assert call()() is None
    finally:
        gc.enable()
