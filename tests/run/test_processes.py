"""Jobs of several processes, and of one that is killed: real processes on loopback."""

import json
import re
import signal
import socket
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hosts import allowed, held, two_hosts
from jobs import EVERY, arrays, close, finish, launch, newest, run, same, several, until

SLOW = ("--mesh", "fsdp=2", "--pause", "0.1", *EVERY)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing interrupts, on four devices of one process."""
    out = tmp_path_factory.mktemp("whole")
    run(out, "--mesh", "fsdp=2", *EVERY)
    return arrays(out)


def saved(out):
    """The steps whose checkpoints are whole, and their folder."""
    folder = newest(out) / "checkpoints"
    return sorted(int(one.name) for one in folder.glob("*") if one.name.isdigit()), folder


def taken(out):
    """How many steps the metrics tell of."""
    text = "".join(one.read_text() for one in out.glob("small_job/*/metrics.jsonl"))
    lines = text[: text.rfind("\n") + 1].splitlines()
    return json.loads(lines[-1])["step"] + 1 if lines else 0


def truncate(folder):
    """Cut every file of a checkpoint's state in half; what marks the checkpoint."""
    for file in [one for one in (folder / "state").rglob("*") if one.is_file()]:
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return mark(folder)


def mark(folder):
    """What tells a checkpoint from another one in its place."""
    return folder.name, (folder / "state" / "_METADATA").stat().st_mtime_ns


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
    close(found, whole)


def test_a_killed_run_goes_on_bitwise(tmp_path, whole):
    """SIGKILL; the newest checkpoint is damaged besides, so the one before is taken."""
    process = launch(tmp_path, "--mesh", "fsdp=2", "--pause", "0.1", *EVERY)
    until(process, tmp_path, 15)
    process.kill()
    process.communicate()
    steps, folder = saved(tmp_path)
    truncate(folder / str(steps[-1]))
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
    close(arrays(tmp_path), whole)


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


def strike(process, out, kind, random):
    """Wait for a moment of a kind and end the process there; its status, and what it printed."""
    deadline, before = time.monotonic() + 100, taken(out)
    if kind == "start":
        time.sleep(random.uniform(0, 4))
    else:
        target = before + random.integers(5, 12)
        while taken(out) < target:
            assert process.poll() is None, finish(process)[1]
            assert time.monotonic() < deadline, "no step was taken"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
    while kind == "save" and not list(out.glob("small_job/*/checkpoints/*-tmp*")):
        assert process.poll() is None, finish(process)[1]
        time.sleep(0.001)
    process.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
    return finish(process, 60)


@pytest.mark.soak
def test_twenty_kills_change_nothing(tmp_path):
    """SIGKILL at the start, in a step, in a save; SIGTERM; the newest checkpoint cut in half."""
    run(tmp_path / "whole", "--mesh", "fsdp=2", "--steps", "300")
    random, out = np.random.default_rng(0), tmp_path / "killed"
    options = ("--mesh", "fsdp=2", "--steps", "300", "--resume", *EVERY)
    here, damaged = 0, set()
    for kind in random.permutation(["start", "step", "save", "term", "cut"] * 4):
        status, text = strike(launch(out, *options, "--pause", "0.05"), out, kind, random)
        print(f"{kind}: {status}, {here} -> {taken(out)} steps")
        found = re.search(r"resumes after step (\d+)", text)
        assert found is None or int(found[1]) == here, text
        assert found or kind == "start" or here == 0, text
        steps, folder = saved(out) if (out / "small_job").is_dir() else ([], out)
        steps = [0] + [one for one in steps if mark(folder / str(one)) not in damaged]
        here = steps[-1]
        if kind == "term":
            assert status == 75, text
            assert f"ended by SIGTERM after step {here};" in text
        else:
            assert status == -signal.SIGKILL, text
        if kind != "start":
            assert taken(out) - here < 10  # a save begins when the one before is done
        if kind == "cut":
            damaged.add(truncate(folder / str(here)))
            here = steps[-2]
    text = run(out, *options)
    assert f"resumes after step {here}" in text
    assert not list(out.glob("small_job/*/checkpoints/*-tmp*"))
    same(arrays(out, 300), arrays(tmp_path / "whole", 300))


@pytest.mark.soak
def test_sigterm_to_one_of_two_ends_both_after_the_same_step(tmp_path, whole):
    both = several(tmp_path, 2, *SLOW)
    until(both[0], tmp_path, 5)
    both[1].send_signal(signal.SIGTERM)
    for status, text in [finish(one, 100) for one in both]:
        (*_, step), _ = saved(tmp_path)
        assert status == 75, text
        assert f"ended by SIGTERM after step {step};" in text
    text = run(tmp_path, "--mesh", "fsdp=2", "--resume", *EVERY)
    assert f"resumes after step {step}" in text
    close(arrays(tmp_path), whole)


@pytest.mark.soak
def test_a_cable_that_is_cut_ends_both_hosts(tmp_path, whole):
    """Each process ends when it has not heard of the other; one goes on with what was saved."""
    with two_hosts() as (*hosts, cut):
        common = ("--processes", "2", "--coordinator", "10.77.0.1:4000", "--lost-timeout", "10")
        both = [
            launch(tmp_path, *common, "--process", str(i), *SLOW, devices=2, within=host)
            for i, host in enumerate(hosts)
        ]
        until(both[0], tmp_path, 5)
        cut()
        start = time.monotonic()
        with ThreadPoolExecutor() as pool:
            ended = list(pool.map(lambda one: finish(one, 60), both))
        seconds = time.monotonic() - start
    print(f"both ended {seconds:.1f} s after the cut")
    assert seconds < 10 + 15
    for status, text in ended:
        assert status == -signal.SIGABRT, text
        assert "a process that is not heard of for 10 s ends all" in text
    assert "stopped sending heartbeats" in ended[0][1]
    assert "Heartbeat" in ended[1][1]
    (*_, step), _ = saved(tmp_path)
    assert step >= 5
    text = run(tmp_path, "--mesh", "fsdp=2", "--resume", *EVERY)
    assert f"resumes after step {step}" in text
    close(arrays(tmp_path), whole)


@pytest.mark.soak
def test_a_disk_that_fills_costs_checkpoints_alone(tmp_path, whole):
    """Two checkpoints fit a disk of 300 KiB; with space the run goes on from the second."""
    allowed("-m")
    disk = tmp_path / "disk"
    disk.mkdir()
    options = ("--mesh", "fsdp=2", "--checkpoints", str(disk), *EVERY)
    with held("unshare", "-rm") as user:
        within = [*user, "-m"]

        def tell(text):
            return subprocess.check_output([*within, "sh", "-ec", text], text=True)

        tell(f"mount -t tmpfs -o size=300k none '{disk}'")
        status, text = finish(launch(tmp_path, *options, within=within))
        assert status == 1, text
        assert "the run is incomplete: checkpoint: " in text
        assert "No space left on device" in text.splitlines()[-1]
        same(arrays(tmp_path), whole)
        steps = sorted(int(name) for name in tell(f"ls '{disk}'").split() if name.isdigit())
        assert steps == [5, 10]
        tell(f"mount -o remount,size=10m '{disk}'")
        status, text = finish(launch(tmp_path, *options, "--resume", within=within))
        assert status == 0, text
        assert "resumes after step 10" in text
        assert tell(f"ls '{disk}'").split() == ["30", "35", "40"]
    same(arrays(tmp_path), whole)
