"""The commands of a job on TPU hosts, without a cloud."""

import importlib.util
import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2] / "experiments" / "launch"
_spec = importlib.util.spec_from_file_location("launch", HERE / "launch.py")
launch = importlib.util.module_from_spec(_spec)
sys.modules["launch"] = launch
_spec.loader.exec_module(launch)


@pytest.mark.parametrize("action", ["create", "sync", "run", "log", "fetch", "delete"])
def test_a_dry_run_prints_what_would_run(action, capsys, monkeypatch):
    monkeypatch.setattr(launch.subprocess, "run", lambda *a, **k: pytest.fail("it ran"))
    assert launch.main([action, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    words = [shlex.split(line) for line in lines]
    assert all(w[0] in ("gcloud", "git") for w in words)
    assert words == launch.commands(action, launch.load(HERE / "settings.toml"))


def test_every_host_runs_the_same_command_on_one_line():
    settings = launch.load(HERE / "settings.toml")
    (command,) = launch.commands("run", settings)
    assert "--worker=all" in command
    assert "\n" not in command[-1]
    assert shlex.join(launch.job(settings)[1:]) in command[-1]
    assert launch.job(settings)[:2] == ["jaxinf", "run"]


def test_a_jobset_has_a_pod_for_each_host(capsys):
    assert launch.main(["manifest"]) == 0
    found = json.loads(capsys.readouterr().out)
    (replicated,) = found["spec"]["replicatedJobs"]
    spec = replicated["template"]["spec"]
    assert replicated["replicas"] * spec["completions"] == 4
    (container,) = spec["template"]["spec"]["containers"]
    assert container["command"] == launch.job(launch.load(HERE / "settings.toml"))
    assert container["resources"]["limits"] == {"google.com/tpu": "4"}


def test_settings_that_are_wrong_are_named(tmp_path):
    text = (HERE / "settings.toml").read_text()
    for old, new, message in [
        ("hosts = 4", "host = 4", "host, hosts in "),
        ("spot = true", "", "spot in .tpu_vm."),
        ("slices = 1", "slices = 3", "3 slices do not divide"),
    ]:
        (tmp_path / "s.toml").write_text(text.replace(old, new))
        with pytest.raises(SystemExit, match=message):
            launch.load(tmp_path / "s.toml")


@pytest.mark.parametrize(
    ("statuses", "status", "tries"),
    [("0", 0, 1), ("75 75 0", 0, 3), ("2", 2, 1), ("1 1 1 1", 1, 3)],
)
def test_a_job_is_tried_again_while_that_may_help(tmp_path, statuses, status, tries):
    (tmp_path / "todo").write_text(statuses.replace(" ", "\n") + "\n")
    once = (
        "head -n 1 todo > now; tail -n +2 todo > rest; mv rest todo; echo x >> log; exit $(cat now)"
    )
    done = subprocess.run(
        ["sh", str(HERE / "retry.sh"), "sh", "-c", once],
        cwd=tmp_path, env={"RETRIES": "2", "WAIT": "0", "PATH": "/usr/bin:/bin"}, check=False,
    )  # fmt: skip
    assert done.returncode == status
    assert len((tmp_path / "log").read_text().splitlines()) == tries
