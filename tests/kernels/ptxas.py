"""Kernels compiled by ptxas for GPUs that are not here, one architecture a process."""

import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import pytest
from jaxinf_kernels.static import cuda

HERE = Path(__file__).parent


@cache
def compiled(chip, module, function="cases"):
    """Return what ptxas says of each case that a function of a test module returns, by name.

    Cases are ``[(name, function, arguments), ...]``. A case that does not compile has ``error``.
    """
    if not cuda.installed():
        pytest.skip("ptxas compiles for GPUs: pip install 'jaxinf[aot]'")
    with tempfile.TemporaryDirectory() as where:
        result = Path(where) / "found.json"
        command = [sys.executable, "-m", "jaxinf_kernels.static", f"{module}:{function}"]
        done = subprocess.run(
            [*command, "--chip", chip, "--json", str(result)],
            cwd=HERE,
            env=dict(os.environ, JAX_PLATFORMS="cpu", PYTHONPATH=str(HERE)),
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert result.exists(), f"the compiler gave up:\n{done.stdout}\n{done.stderr[-3000:]}"
        return {entry["name"]: entry for entry in json.loads(result.read_text())}
