"""The memory that a step is planned to take, against what it takes: a gibibyte and more."""

import json
import os
import subprocess
import sys

import pytest

SCRIPT = """
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tiny_experiment import tiny

from jaxinf.run.mesh import make_mesh
from jaxinf.run.plan import compile_for, memory_of, places

WIDTH, DEPTH, ROWS = 2048, 16, 2048


def resident(name):
    kib = re.search(rf"{name}:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]
    return int(kib) * 1024


def init(key):
    weights = jax.random.normal(key, (DEPTH, WIDTH, WIDTH)) / WIDTH**0.5
    return {"weights": weights, "momentum": jnp.zeros_like(weights)}


def step(key, state, batch):
    def loss(weights):
        out, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), batch, weights)
        return jnp.square(out - batch).mean()

    value, slope = jax.value_and_grad(loss)(state["weights"])
    momentum = jax.tree.map(lambda m, s: 0.9 * m + s, state["momentum"], slope)
    return {"weights": state["weights"] - momentum, "momentum": momentum}, {"loss": value}


def batch(seed, step, index):
    return np.random.default_rng(step).normal(size=(len(index), WIDTH)).astype(np.float32)


mesh = make_mesh("")
experiment = tiny(init=init, step=step, batch=batch, batch_size=ROWS)
placed = places(experiment, mesh)
compiled = compile_for(experiment, placed, mesh, "cpu")
planned = memory_of(compiled)


def filled(form):
    return jax.jit(lambda: jnp.full(form.shape, 0.01, form.dtype), out_shardings=form.sharding)()


jax.block_until_ready(jax.jit(lambda x: x @ x)(jnp.ones((8, 8))))  # threads are there
key = jax.device_put(jax.random.key(0), placed[0].sharding)
Path("/proc/self/clear_refs").write_text("5")  # the peak is what there is
before = resident("VmRSS")
state, rows = jax.tree.map(filled, placed[1:])
index = jax.jit(lambda: jnp.uint32(0))()
jax.block_until_ready(compiled(key, index, state, rows))
grown = resident("VmHWM") - before
print(json.dumps({"planned": planned.total, "grown": grown, **planned._asdict()}))
"""


@pytest.mark.soak
@pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="needs Linux's /proc")
def test_a_step_takes_the_memory_that_was_planned():
    """The peak of resident memory, from before the arrays to after the step, on one device."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
    }
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    print(found)
    assert found["planned"] >= 2**30
    assert found["grown"] == pytest.approx(found["planned"], rel=0.2)
