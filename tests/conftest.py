"""Eight virtual devices, strict ranks, and a float64 fixture for every test."""

import os

os.environ.setdefault("MPLBACKEND", "agg")
# Where libtpu is installed for its compiler, JAX would look for a TPU and complain of none.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests compile thousands of programs that run once: half of their time went to LLVM's optimiser.
# What runs long, `make soak` and the benchmarks, sets XLA_FLAGS itself.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """Leave out what the installed JAX cannot do."""
    from jaxinf_kernels.compat import OLD

    for item in items:
        if "cuda" in OLD and item.path.stem.endswith("_gpu"):
            item.add_marker(pytest.mark.skip(reason=OLD["cuda"]))


def pytest_terminal_summary(terminalreporter):
    """Say what was left out for want of a compiler."""
    from jaxinf_kernels.static import cuda

    if not cuda.installed():
        terminalreporter.write_line(
            "ptxas is not installed: kernels were not compiled for GPUs (make aot installs it)"
        )


@pytest.fixture
def x64():
    """Float64 for the length of a test."""
    with jax.enable_x64(True):
        yield


@pytest.fixture
def key():
    """A key that is the same in every run."""
    return jax.random.key(0)
