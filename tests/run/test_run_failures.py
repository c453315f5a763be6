import os
import re
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure
from tiny_experiment import batch, final, go, init, lines, only, step, tiny

from jaxinf.run import RunError, Study, metrics


def explode_at(bad):
    def explode(key, state, batch):
        state, values = step(key, state, batch)
        loss = jnp.where(state["count"] == bad + 1, jnp.nan, values["loss"])
        return state, values | {"loss": loss}

    return explode


@pytest.mark.parametrize("count", [300, 2])
def test_a_loss_that_is_not_finite_stops_by_name(tmp_path, monkeypatch, count):
    monkeypatch.setattr(metrics, "LINES", count)
    with pytest.raises(RunError, match="loss is nan at step 7") as caught:
        go(tiny(step=explode_at(7), steps=40), tmp_path)
    message = str(caught.value)
    assert "the last finite value is 7.0" in message
    assert "The batch of that step is finite" in message
    assert "learning rate" in message
    folder = only(tmp_path)
    last = lines(folder)[-1]
    assert (last["step"], last["metrics"]["loss"]) == (7, None)
    report = (folder / "report.md").read_text()
    assert "Status: **stopped**" in report
    assert "loss is nan at step 7" in report
    assert (folder / "figures/training-curve.png").exists()
    assert (folder / "state").is_dir()


def test_the_seed_that_exploded_is_named(tmp_path):
    def explode(key, state, batch):
        state, values = step(key, state, batch)
        return state, values | {"loss": jnp.where(batch["x"].max() > 50, jnp.inf, values["loss"])}

    def large(seed, step, index):
        return {"x": batch(seed, step, index)["x"] + 100 * (seed == 9 and step == 2)}

    with pytest.raises(RunError, match=r"at step 2 \(seed 9\).*largest magnitude 10\d"):
        go(tiny(step=explode, batch=large), tmp_path, seed=8, seeds=2)


def test_other_metrics_may_be_nan(tmp_path):
    def odd(key, state, batch):
        state, values = step(key, state, batch)
        return state, values | {"accuracy": jnp.nan}

    assert lines(go(tiny(step=odd), tmp_path))[0]["metrics"]["accuracy"] is None


def test_without_a_loss_every_metric_is_watched(tmp_path):
    def odd(key, state, batch):
        return step(key, state, batch)[0], {"a": jnp.float32(1), "b": jnp.nan * state["count"]}

    with pytest.raises(RunError, match=r"b is nan at step 0.*there was none before"):
        go(tiny(step=odd), tmp_path)


def test_nan_in_a_batch_is_found_before_it_is_sent(tmp_path):
    def spoilt(seed, step, index):
        data = batch(seed, step, index)
        if step == 3:
            data["x"][2, 1] = np.nan
        return {"images": [data["x"]]} | data

    expected = r"leaf 'images.0' of step 3 \(seed 0\) has 1 entries.*\(2, 1\).*impute"
    with pytest.raises(ValueError, match=expected):
        go(tiny(batch=spoilt), tmp_path)
    folder = only(tmp_path)
    assert [line["step"] for line in lines(folder)] == [0, 1, 2]
    assert "Status: **stopped**" in (folder / "report.md").read_text()


@pytest.mark.parametrize("rows", [0, 3])
def test_a_batch_of_another_length(tmp_path, rows):
    def short(seed, step, index):
        return batch(seed, step, index[:rows])

    with pytest.raises(ValueError, match=rf"'x' of step 0.*\({rows}, 3\), but 8 rows"):
        go(tiny(batch=short), tmp_path)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda key, state, batch: state, "must return"),
        (lambda key, state, batch: ({**state, "more": 1.0}, {}), "structure"),
        (
            lambda key, state, batch: ({**state, "count": state["count"] * 1.0}, {}),
            r"leaf 'count' came as int32\[\] and went as float32\[\]",
        ),
        (lambda key, state, batch: (state, {"loss": batch["x"]}), r"'loss'.*Take its mean"),
        (lambda key, state, batch: (state, 1.0), "metrics must be a dict"),
    ],
)
def test_steps_of_another_form(tmp_path, wrong, message):
    with pytest.raises((TypeError, ValueError), match=message):
        go(tiny(step=wrong), tmp_path)


def test_a_failing_evaluation_loses_nothing_of_the_others(tmp_path, capsys):
    def broken(key, state):
        raise ArithmeticError("no such thing")

    experiment = tiny(evaluate={"broken": broken, "final": final})
    with pytest.raises(RunError, match="evaluation broken: ArithmeticError: no such thing"):
        go(experiment, tmp_path)
    folder = only(tmp_path)
    report = (folder / "report.md").read_text()
    assert "- evaluation broken: ArithmeticError: no such thing" in report
    assert "finished with failures" in report
    assert "| final.largest |" in report
    assert (folder / "figures/weights.png").exists()
    assert set(np.load(folder / "arrays.npz")) == {"final.weights", "final.largest"}
    captured = capsys.readouterr()
    assert captured.out.splitlines()[-1] == str(folder / "report.md")
    assert "Traceback" in captured.err


def test_results_are_on_disk_after_each_evaluation(tmp_path):
    seen = []

    def second(key, state):
        seen.extend(np.load(only(tmp_path) / "arrays.npz"))
        return jnp.float32(1)

    go(tiny(evaluate={"final": final, "second": second}), tmp_path)
    assert set(seen) == {"final.weights", "final.largest"}


def test_a_failing_draw_or_figure_or_note(tmp_path):
    def broken(arrays):
        return {arrays["missing"]: Figure()}

    with pytest.raises(RunError, match="draw: KeyError: 'missing'"):
        go(tiny(draw=broken), tmp_path / "draw")
    assert (only(tmp_path / "draw") / "arrays.npz").exists()

    with pytest.raises(RunError, match=r"figure \.\./x: ValueError"):
        go(tiny(draw=lambda a: {"../x": Figure(), "good": Figure()}), tmp_path / "figure")
    assert (only(tmp_path / "figure") / "figures/good.png").exists()

    with pytest.raises(RunError, match="notes: ZeroDivisionError"):
        go(tiny(notes=lambda a: str(1 / 0)), tmp_path / "notes")


def test_a_failing_study_still_reports(tmp_path):
    with pytest.raises(ZeroDivisionError):
        go(Study(run=lambda key: {"a": 1 / 0}, draw=lambda a: {}), tmp_path)
    assert "division by zero" in (only(tmp_path) / "report.md").read_text()


def test_an_interrupted_run_reports(tmp_path):
    def interrupted(seed, step, index):
        if step == 4:
            raise KeyboardInterrupt
        return batch(seed, step, index)

    with pytest.raises(KeyboardInterrupt):
        go(tiny(batch=interrupted), tmp_path)
    folder = only(tmp_path)
    report = (folder / "report.md").read_text()
    assert "Status: **interrupted**" in report
    assert "the training state after 4 steps" in report
    assert [line["step"] for line in lines(folder)] == [0, 1, 2, 3]


def full_disk(directory):
    """An init that puts a full device in the place of the metrics' file."""

    def start(key):
        if (directory / "tiny").is_dir():  # not where only its form is asked for
            os.symlink("/dev/full", only(directory) / "metrics.jsonl")
        return init(key)

    return start


def test_a_full_disk_moves_the_run(tmp_path, monkeypatch, capsys):
    fallback = tmp_path / "tmp"
    fallback.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(fallback))
    with pytest.raises(RunError, match="could not be written"):
        go(tiny(init=full_disk(tmp_path / "runs")), tmp_path / "runs")
    captured = capsys.readouterr()
    assert captured.err.count("jaxinf: cannot write") == 1
    assert "No space left on device" in captured.err
    report = Path(captured.out.splitlines()[-1])
    assert report.is_relative_to(fallback)
    assert [line["step"] for line in lines(report.parent)] == list(range(6))
    assert "finished with failures" in report.read_text()
    for link in re.findall(r"!\[.*?\]\((.*?)\)", report.read_text()):
        assert (report.parent / link).exists()
    assert set(np.load(report.parent / "arrays.npz")) >= {"final.weights", "noise"}
    assert (only(tmp_path / "runs") / "state").is_dir()


def test_a_state_that_cannot_be_written_goes_elsewhere(tmp_path, monkeypatch):
    fallback = tmp_path / "tmp"
    fallback.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(fallback))

    def taken(key):
        if (tmp_path / "runs").is_dir():  # not where only its form is asked for
            (only(tmp_path / "runs") / "state").mkdir()  # the checkpointer overwrites nothing
        return init(key)

    with pytest.raises(RunError, match="incomplete: state: ValueError"):
        go(tiny(init=taken), tmp_path / "runs")
    (state,) = fallback.glob("*/state")
    folder = only(tmp_path / "runs")
    assert f"`{state}` is the training state after 6 steps" in (folder / "report.md").read_text()
    assert (folder / "figures/weights.png").exists()


def test_a_disk_that_recovers_takes_all_at_the_end(tmp_path, capsys):
    def freed(key, state):
        (only(tmp_path) / "metrics.jsonl").unlink()
        return final(key, state)

    folder = go(tiny(init=full_disk(tmp_path), evaluate={"final": freed}), tmp_path)
    assert folder == only(tmp_path)
    assert len(lines(folder)) == 6
    assert capsys.readouterr().err.count("jaxinf: cannot write") == 1
