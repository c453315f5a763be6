"""Importing costs what importing jax costs: no heavy package, no array, no device."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("flax", "numpyro", "orbax", "matplotlib", "sklearn", "tyro")
ROOMS = sorted({path.parent.name for path in (ROOT / "jaxinf").glob("*/*.py")})
WHOLE = {"nets", "run"}  # rooms that are made for heavy packages

PROBE = """
import importlib, json, sys
modules, heavy = json.loads(sys.argv[1]), json.loads(sys.argv[2])
brought = {}
import jax
from jax._src import xla_bridge
for module in modules:
    before = {name for name in heavy if name in sys.modules}
    importlib.import_module(module)
    new = [name for name in heavy if name in sys.modules and name not in before]
    if new:
        brought[module] = new
    if xla_bridge.backends_are_initialized():
        brought.setdefault(module, []).append("a device")
        break
arrays = len(jax.live_arrays())
print(json.dumps({"brought": brought, "arrays": arrays}))
"""


def probe(modules: list[str], heavy: tuple[str, ...]) -> dict:
    """What importing the modules in this order brings along, in a fresh interpreter."""
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps(modules), json.dumps(heavy)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("modules", "heavy"),
    [
        (["jaxinf", *(f"jaxinf.{room}" for room in ROOMS if room not in WHOLE)], HEAVY),
        ([f"jaxinf.{room}" for room in ROOMS if room in WHOLE] or ["jaxinf"], ()),
    ],
    ids=["light", "whole"],
)
def test_import_brings_nothing_along(modules, heavy):
    assert probe(modules, heavy) == {"brought": {}, "arrays": 0}


def test_probe_sees_heavy_packages_arrays_and_devices(tmp_path, monkeypatch):
    (tmp_path / "greedy.py").write_text("import sklearn, jax.numpy as jnp\nheld = jnp.zeros(3)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert probe(["greedy"], HEAVY) == {"brought": {"greedy": ["sklearn", "a device"]}, "arrays": 1}
