"""Resuming in one process: what is refused, what a save costs a run that it fails in."""

import dataclasses
import signal

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from tiny_experiment import batch, go, init, lines, only, results, tiny

from jaxinf.run import RunError
from jaxinf.run.distributed import Job, check, clustered, parse
from jaxinf.run.folder import fresh, taken
from jaxinf.run.setting import Setting

OFTEN = Setting(every=2)


@pytest.mark.parametrize("steps", [5, 6])
def test_a_longer_run_goes_on_where_a_shorter_one_ended(tmp_path, steps):
    """All in between is the same to the last bit: state, metrics, evaluations."""
    whole = go(tiny(steps=9), tmp_path / "whole")
    go(tiny(steps=steps), tmp_path / "parts", setting=OFTEN)
    folder = go(tiny(steps=9), tmp_path / "parts", setting=Setting(every=2, resume=True))
    assert folder == only(tmp_path / "parts")
    assert f"Resumed after step {steps // 2 * 2}." in (folder / "report.md").read_text()
    found, wanted = results(folder), results(whole)
    for name in wanted:
        np.testing.assert_array_equal(found[name], wanted[name])
    assert [line["metrics"] for line in lines(folder)] == [line["metrics"] for line in lines(whole)]


def test_only_the_newest_stay(tmp_path):
    folder = go(tiny(steps=9), tmp_path, setting=Setting(every=1, keep=2))
    assert sorted(one.name for one in (folder / "checkpoints").iterdir()) == ["8", "9"]


@pytest.mark.parametrize("mesh", ["data=8", "fsdp=8"])
def test_a_save_under_way_is_not_touched_by_later_steps(tmp_path, mesh):
    """Later steps consume the state while it is written: each checkpoint holds its own step's."""
    rows = 2**17

    def step(key, state, batch):
        return {"x": state["x"] + 1}, {"loss": jnp.mean(state["x"])}

    count = tiny(init=lambda key: {"x": jnp.zeros((8, rows))}, step=step, evaluate={}, steps=12)
    count = dataclasses.replace(count, draw=lambda arrays: {})
    folder = go(count, tmp_path, setting=Setting(mesh=mesh, every=1, keep=12))
    with ocp.StandardCheckpointer() as saved:
        for step in range(1, 13):
            path = folder / "checkpoints" / str(step) / "state"
            found = saved.restore(path, {"state": {"x": np.zeros((8, rows), np.float32)}})
            assert (found["state"]["x"] == step).all()


def test_what_a_killed_save_left_is_removed(tmp_path):
    folder = go(tiny(), tmp_path, setting=OFTEN)
    left = folder / "checkpoints" / "5.orbax-checkpoint-tmp"
    (left / "state").mkdir(parents=True)
    go(tiny(steps=7), tmp_path, setting=Setting(every=2, resume=True))
    assert not left.exists()


def test_nothing_to_resume_starts(tmp_path, capsys):
    folder = go(tiny(), tmp_path, setting=Setting(every=2, resume=True))
    assert "no checkpoint to resume from" in capsys.readouterr().err
    assert len(lines(folder)) == 6


def test_what_ended_before_its_first_checkpoint_begins_anew(tmp_path):
    def broken(seed, step, index):
        if step == 3:
            raise OSError("the data are gone")
        return batch(seed, step, index)

    with pytest.raises(OSError, match="are gone"):
        go(tiny(batch=broken), tmp_path, setting=Setting(every=100))
    assert [line["step"] for line in lines(only(tmp_path))] == [0, 1, 2]
    folder = go(tiny(), tmp_path, setting=Setting(resume=True))
    assert [line["step"] for line in lines(folder)] == list(range(6))
    assert "Resumed" not in (folder / "report.md").read_text()


@pytest.mark.parametrize("every", [None, 0, 100])
def test_sigterm_saves_whatever_the_interval(tmp_path, every):
    def terminated(seed, step, index):
        if step == 3:
            signal.getsignal(signal.SIGTERM)(signal.SIGTERM, None)
        return batch(seed, step, index)

    whole = results(go(tiny(), tmp_path / "whole"))
    parts = tmp_path / "parts"
    with pytest.raises(RunError, match="SIGTERM after step 3"):
        go(tiny(batch=terminated), parts, setting=Setting(every=every))
    folder = go(tiny(), parts, setting=Setting(resume=True))
    assert "Resumed after step 3." in (folder / "report.md").read_text()
    found = results(folder)
    for name in whole:
        np.testing.assert_array_equal(found[name], whole[name])


def test_a_finished_run_is_evaluated_again(tmp_path):
    folder = go(tiny(), tmp_path, setting=OFTEN)
    before = results(folder)
    go(tiny(), tmp_path, setting=Setting(every=2, resume=True))
    np.testing.assert_array_equal(results(folder)["noise"], before["noise"])


def test_a_state_that_is_not_finite_is_not_saved(tmp_path):
    def step(key, state, batch):
        loss = jnp.where(state["count"] == 4, jnp.nan, 1.0)
        return state | {"count": state["count"] + 1}, {"loss": loss}

    with pytest.raises(RunError, match="loss is nan at step 4"):
        go(tiny(step=step), tmp_path, setting=Setting(every=5))
    assert not list((only(tmp_path) / "checkpoints").iterdir())


def test_a_disk_that_refuses_does_not_end_the_run(tmp_path, monkeypatch):
    def refuse(self, step, state):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("jaxinf.run.checkpoints.Checkpoints._save", refuse)
    with pytest.raises(RunError, match="incomplete: checkpoint: OSError"):
        go(tiny(), tmp_path, setting=OFTEN)
    assert len(lines(only(tmp_path))) == 6
    assert (only(tmp_path) / "figures/weights.png").exists()


def test_what_belongs_to_another_run_is_refused(tmp_path):
    folder = go(tiny(), tmp_path, setting=OFTEN)
    again = {"setting": Setting(folder=folder, every=2, resume=True)}

    def wider(key):
        return init(key) | {"weights": jnp.zeros(4)}

    with pytest.raises(ValueError, match=r"is not empty: .*--resume"):
        go(tiny(), tmp_path, setting=Setting(folder=folder))
    with pytest.raises(RunError, match="of seed 0, this run of 3"):
        go(tiny(), tmp_path, seed=3, **again)
    with pytest.raises(RunError, match="of experiment tiny, this run of other"):
        go(tiny(), tmp_path, name="other", **again)
    with pytest.raises(RunError, match=r"float32\[3\] at weights, .* float32\[4\]"):
        go(tiny(init=wider), tmp_path, **again)


def test_two_runs_in_one_folder_are_refused(tmp_path):
    first = fresh(tmp_path, "tiny")
    with pytest.raises(ValueError, match="another run is writing"):
        taken(first.path, resume=True)
    first.release()
    taken(first.path, resume=True).release()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (Setting(mesh="fsdp=3"), "3 places for 8 devices"),
        (Setting(mesh="sequence=3,data=1"), "3 places for 8 devices"),
        (Setting(every=-1), "must not be negative"),
        (Setting(keep=0), "keep must be at least 1"),
    ],
)
def test_settings_that_are_wrong(tmp_path, setting, message):
    with pytest.raises(ValueError, match=message):
        go(tiny(), tmp_path, setting=setting)
    assert not list(tmp_path.iterdir())


def test_a_batch_that_the_mesh_does_not_divide(tmp_path):
    with pytest.raises(ValueError, match="batch_size 12 is not divided by the mesh's 8 parts"):
        go(tiny(batch_size=12), tmp_path)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job(processes=2, process=2, coordinator="a:1"), "numbers go from 0"),
        (Job(processes=2, process=1), "needs --coordinator"),
        (Job(processes=2, coordinator="here"), "must be HOST:PORT"),
        (Job(processes=-1), "must not be negative"),
    ],
)
def test_jobs_that_are_wrong(job, message):
    with pytest.raises(ValueError, match=message):
        check(job)


def test_a_job_is_read_from_among_other_options():
    found = parse(["--rate", "3", "--processes", "2", "--join-timeout=9", "--process=1"])
    assert found == Job(processes=2, process=1, join_timeout=9)


@pytest.mark.parametrize(
    ("environment", "several"),
    [
        ({"JAX_PLATFORMS": "cpu", "SLURM_NTASKS": "4"}, False),
        ({"SLURM_NTASKS": "4"}, True),
        ({"SLURM_NTASKS": "1"}, False),
        ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
        ({"MEGASCALE_COORDINATOR_ADDRESS": "a"}, True),
    ],
)
def test_clusters_are_seen(environment, several):
    assert clustered(environment) == several
