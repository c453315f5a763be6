"""Kernels compiled by ptxas for GPUs that are not here, one architecture a process."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from jaxinf_kernels.chips import CHIPS
from jaxinf_kernels.static import cuda

HERE = Path(__file__).parent


@cache
def compiled(chip, module):
    """Return what ptxas says of a test module's cases for a chip's generation, by name.

    Cases are ``[(name, function, arguments), ...]``. A case that does not compile has ``error``.
    """
    if not cuda.installed():
        pytest.skip("ptxas compiles for GPUs: pip install 'jaxinf[aot]'")
    with tempfile.TemporaryDirectory() as where:
        result = Path(where) / "found.json"
        paths = [str(HERE), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        command = [
            sys.executable,
            "-m",
            "jaxinf_kernels.static",
            f"{module}:{CHIPS[chip].generation}",
        ]
        done = subprocess.run(
            [*command, "--chip", chip, "--json", str(result)],
            cwd=HERE,
            env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=os.pathsep.join(paths)),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.exists(), f"the compiler gave up:\n{done.stdout}\n{done.stderr[-3000:]}"
        return {entry["name"]: entry for entry in json.loads(result.read_text())}
