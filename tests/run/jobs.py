"""Runs of small_job.py in processes of their own, and what they leave."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

FILE = Path(__file__).with_name("small_job.py")
MAIN = "from jaxinf.run.cli import main; raise SystemExit(main())"
EVERY = ("--checkpoint-every", "5")


def launch(out, *options, devices=4, within=()):
    """Start ``jaxinf run`` with virtual devices, by a command that starts others."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    command = [*within, sys.executable, "-c", MAIN, "run", str(FILE), "--out", str(out), *options]
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


def newest(out):
    """The newest run's folder."""
    return max((out / "small_job").iterdir())


def arrays(out, steps=40):
    """The results and the losses of the newest run."""
    folder = newest(out)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(steps))  # none twice, none missing
    loss = np.array([line["metrics"]["loss"] for line in lines])
    with np.load(folder / "arrays.npz") as found:
        return dict(found) | {"losses": loss}


def until(process, out, step, seconds=200):
    """Wait until a checkpoint of a step lies there whole."""
    deadline = time.monotonic() + seconds
    while not list(out.glob(f"small_job/*/checkpoints/{step}/_CHECKPOINT_METADATA")):
        assert process.poll() is None, finish(process)[1]
        assert time.monotonic() < deadline, "no checkpoint came"
        time.sleep(0.05)


def same(found, whole):
    for name in found | whole:
        np.testing.assert_array_equal(found[name], whole[name], err_msg=name)


def close(found, whole):
    """The same but for the order of sums over devices: forty steps of Adam, each to rounding."""
    for name in whole:
        np.testing.assert_allclose(found[name], whole[name], rtol=1e-4, atol=1e-5)
