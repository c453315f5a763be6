"""Jobs of several processes, and of one that is killed: real processes on loopback."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

FILE = Path(__file__).with_name("small_job.py")
MAIN = "from jaxinf.run.cli import main; raise SystemExit(main())"
EVERY = ("--checkpoint-every", "5")


def launch(out, *options, devices=4, file=FILE):
    """Start ``jaxinf run`` with virtual devices."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [sys.executable, "-c", MAIN, "run", str(file), "--out", str(out), *options]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(process, seconds=240):
    """Wait for a process; its exit status and what it printed."""
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return process.returncode, text


def run(out, *options, devices=4):
    """Run to the end."""
    status, text = finish(launch(out, *options, devices=devices))
    assert status == 0, text
    return text


def several(out, count, *options, devices=2):
    """Start a job of several processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = ("--processes", str(count), "--coordinator", f"127.0.0.1:{port}", *options)
    return [launch(out, *common, "--process", str(i), devices=devices) for i in range(count)]


def arrays(out):
    """The results and the losses of the newest run."""
    folder = max((out / "small_job").iterdir())
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(40))  # none twice, none missing
    loss = np.array([line["metrics"]["loss"] for line in lines])
    return dict(np.load(folder / "arrays.npz")) | {"losses": loss}


def until(process, out, step, seconds=200):
    """Wait until a checkpoint of a step lies there whole."""
    deadline = time.monotonic() + seconds
    while not list(out.glob(f"small_job/*/checkpoints/{step}/_CHECKPOINT_METADATA")):
        assert process.poll() is None, finish(process)[1]
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, on four devices of one process."""
    out = tmp_path_factory.mktemp("whole")
    run(out, "--mesh", "fsdp=2", *EVERY)
    return arrays(out)


def same(found, whole):
    for name in found | whole:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)


@pytest.mark.parametrize(("count", "devices"), [(2, 2), (4, 1)])
def test_several_processes_agree_with_one(tmp_path, whole, count, devices):
    """Training, samples, checkpoints; sums over processes may be taken in another order."""
    results = [finish(one) for one in several(tmp_path, count, "--mesh", "fsdp=2", devices=devices)]
    assert [status for status, _ in results] == [0] * count, results
    for i, (_, text) in enumerate(results):
        assert f"jaxinf: process {i} of {count} on {socket.gethostname()} joins" in text
        assert f"[{i}] jaxinf: process {i} of {count}" in text
        assert text.count("report.md") == (i == 0)
    found = arrays(tmp_path)
    np.testing.assert_allclose(found["losses"][:2], whole["losses"][:2], rtol=1e-6)
    for name in whole:  # forty steps of Adam, each to rounding
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-4, atol=1e-5)


def test_a_killed_run_goes_on_bitwise(tmp_path, whole):
    """SIGKILL; the newest checkpoint is damaged besides, so the one before is taken."""
    process = launch(tmp_path, "--mesh", "fsdp=2", "--pause", "0.1", *EVERY)
    until(process, tmp_path, 15)
    process.kill()
    process.communicate()
    (folder,) = (tmp_path / "small_job").iterdir()
    steps = sorted(
        int(one.name) for one in (folder / "checkpoints").iterdir() if one.name.isdigit()
    )
    damaged = folder / "checkpoints" / str(steps[-1]) / "state"
    for file in [one for one in damaged.rglob("*") if one.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    text = run(tmp_path, "--mesh", "fsdp=2", "--resume", *EVERY)
    assert f"checkpoint {steps[-1]} cannot be read" in text
    assert f"resumes after step {steps[-2]}" in text
    same(arrays(tmp_path), whole)


def test_sigterm_saves_and_asks_to_be_tried_again(tmp_path, whole):
    process = launch(tmp_path, "--mesh", "fsdp=2", "--pause", "0.1", "--checkpoint-every", "1000")
    (out,) = [tmp_path / "small_job"]
    deadline = time.monotonic() + 200
    while not list(out.glob("*/metrics.jsonl")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    status, text = finish(process)
    assert status == 75, text
    assert "ended by SIGTERM after step" in text
    text = run(tmp_path, "--mesh", "fsdp=2", "--resume", *EVERY)
    assert "resumes after step" in text
    same(arrays(tmp_path), whole)


def test_another_number_of_devices(tmp_path, whole):
    """8 devices, then 4 with another mesh, then 16; sums in another order."""
    run(tmp_path, "--steps", "10", *EVERY, devices=8)
    run(tmp_path, "--steps", "20", "--resume", "--mesh", "fsdp=2,tensor=2", *EVERY, devices=4)
    text = run(tmp_path, "--resume", "--mesh", "fsdp=4", *EVERY, devices=16)
    assert "resumes after step 20" in text
    found = arrays(tmp_path)
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-4, atol=1e-5)


def test_a_process_that_never_comes_is_named(tmp_path):
    (first, second) = several(tmp_path, 2, "--join-timeout", "8")
    second.kill()
    second.communicate()
    status, text = finish(first, 60)
    assert status == 69, text
    assert "not all processes joined within 8 s" in text
    assert "--worker=all" in text


def test_a_process_that_dies_ends_the_job(tmp_path):
    (first, second) = several(tmp_path, 2, "--pause", "0.1", "--lost-timeout", "10", *EVERY)
    until(first, tmp_path, 5)
    second.kill()
    second.communicate()
    start = time.monotonic()
    status, _ = finish(first, 100)
    assert status != 0
    assert time.monotonic() - start < 60


@pytest.mark.soak
def test_twenty_kills_change_nothing(tmp_path, whole):
    """SIGKILL at random moments, of the start, of a step or of a save; then it is let finish."""
    random = np.random.default_rng(0)
    options = ("--mesh", "fsdp=2", "--pause", "0.1", "--resume", "--checkpoint-every", "2")
    for _ in range(20):
        process = launch(tmp_path, *options)
        time.sleep(random.uniform(3, 14))
        process.kill()
        process.communicate()
    run(tmp_path, "--mesh", "fsdp=2", "--resume", *EVERY)
    same(arrays(tmp_path), whole)
