"""What ptxas says of kernels for NVIDIA GPUs that are not here.

The CUDA plugin and its compiler are packages (``pip install 'jaxinf[aot]'``); neither a GPU nor a
driver is asked for. A process compiles for one architecture: a second aborts it, and so does an
instruction that the architecture lacks.
"""

import os
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jaxinf_kernels.chips import CHIPS

TARGETS = {
    "h100": dict(name="NVIDIA H100 80GB HBM3", bandwidth=3.35e12, memory=80e9, major=9),
    "h200": dict(name="NVIDIA H200", bandwidth=4.8e12, memory=141e9, major=9),
    "b200": dict(name="NVIDIA B200", bandwidth=7.7e12, memory=180e9, major=10),
}  # fmt: skip
"""What compilers must know of a GPU."""
_CONFIG = """gpu_device_info {{
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: {cores}
  fpus_per_core: 128 block_dim_limit_x: 2147483647 block_dim_limit_y: 65535
  block_dim_limit_z: 65535 memory_bandwidth: {bandwidth:.0f} l2_cache_size: 52428800
  clock_rate_ghz: 1.98 device_memory_size: {memory:.0f} shared_memory_per_block_optin: 232448
  cuda_compute_capability {{ major: {major} minor: 0 {feature} }}
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
}}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} device_description_str: "{name}"
"""


class Kernel(NamedTuple):
    """What ptxas says of one kernel."""

    name: str
    registers: int
    """Of a thread."""
    spills: int
    """Bytes that registers did not suffice for."""
    architecture: str
    """``"sm_90a"`` say."""


class Report(NamedTuple):
    """What was made of a program."""

    kernels: tuple[Kernel, ...]
    temporary: int
    """Bytes of memory beside arguments and results."""
    text: str
    """The compiled program."""


def target(chip: str) -> str:
    """Return the description of a GPU that JAX's compiler takes.

    Raises:
      ValueError: for a GPU that is not known.
    """
    if chip not in TARGETS:
        raise ValueError(f"no GPU is named {chip!r}; there are {', '.join(TARGETS)}.")
    facts: dict[str, Any] = {**TARGETS[chip], "cores": CHIPS[chip].cores}
    feature = "feature_extension: ACCELERATED_FEATURES" if facts["major"] >= 10 else ""
    return _CONFIG.format(**facts, feature=feature)


def installed() -> bool:
    """Whether the CUDA plugin and ptxas are."""
    import importlib.util

    plugin = any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13))
    return plugin and _ptxas() is not None


def _ptxas() -> Path | None:
    """Return the folder of ptxas among the installed packages."""
    found = (p for root in sys.path for p in Path(root or ".").glob("nvidia/*/bin/ptxas"))
    return next((path.parent for path in found), None)


def report(function: Callable[..., Any], *args: Any, chip: str) -> Report:
    """Compile a function for a GPU that is not here, and read what ptxas says of its kernels.

    Args:
      function: of arrays.
      args: arrays or ``jax.ShapeDtypeStruct``.
      chip: ``"h200"`` say.

    Raises:
      RuntimeError: where the compiler is not installed.
    """
    folder = _ptxas()
    if not installed() or folder is None:
        raise RuntimeError("compiling for GPUs needs CUDA's compiler: pip install 'jaxinf[aot]'.")
    if str(folder) not in os.environ["PATH"]:
        os.environ["PATH"] = os.pathsep.join([str(folder), os.environ["PATH"]])
    import jax
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec, use_abstract_mesh

    found = topologies.get_topology_desc(
        "", platform="cuda", topology="1x1x1", target_config=target(chip)
    )
    mesh = Mesh(np.array(found.devices[:1]), ("x",))
    one = NamedSharding(mesh, PartitionSpec())
    placed = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=one), args)
    with tempfile.TemporaryDirectory() as where, use_abstract_mesh(mesh.abstract_mesh):
        os.environ.update(MOSAIC_GPU_DUMP_PTXAS="1", MOSAIC_GPU_DUMP_TO=where)
        traced = jax.jit(function, out_shardings=one).trace(*placed)
        compiled = traced.lower(lowering_platforms=("cuda",)).compile()
        texts = [path.read_text(errors="replace") for path in sorted(Path(where).glob("*.ptxas"))]
    kernels = tuple(kernel for text in texts for kernel in read(text))
    memory: Any = compiled.memory_analysis()
    return Report(kernels, memory.temp_size_in_bytes, compiled.as_text() or "")


def read(text: str) -> list[Kernel]:
    """Read what ptxas says."""
    found = re.findall(
        r"Compiling entry function '(\S+?)(?:_mosaic_gpu_kernel)?' for '(\S+)'"
        r".*?(\d+) bytes spill stores.*?Used (\d+) registers",
        text,
        re.DOTALL,
    )
    return [Kernel(name, int(n), int(spilled), arch) for name, arch, spilled, n in found]
