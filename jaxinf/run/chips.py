"""Facts of accelerators, and the devices of pods that need not be there."""

import importlib.util
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from jaxinf.run.cli import UsageError


class Chip(NamedTuple):
    """What one chip can do by its maker's figures; bytes, seconds, floating point operations."""

    memory: float
    """Bytes of high-bandwidth memory."""
    bandwidth: float
    """Bytes a second to and from it."""
    flops: float
    """Operations a second, dense products of bfloat16."""
    link: float
    """Bytes a second that one link of the fast network sends one way; of TPUs what their maker's
    guide to scaling counts with, a tenth below the data sheets."""
    across: float
    """Bytes a second that the chip sends over the data centre's network."""
    wrap: int = 0
    """A torus closes where its side is a multiple of this; 0 for a switch instead of a torus."""
    config: str = ""
    """What libtpu calls the way its cores are run, where that is not its default."""
    gpu: bool = False
    """Whether it is NVIDIA's."""


GiB = 2**30
CHIPS = {
    "v4": Chip(32 * GiB, 1.228e12, 275e12, 45e9, 6.25e9, 4, "megacore"),
    "v5e": Chip(16 * GiB, 0.819e12, 197e12, 45e9, 3.125e9, 16),
    "v5p": Chip(95 * GiB, 2.765e12, 459e12, 90e9, 6.25e9, 4),
    "v6e": Chip(32 * GiB, 1.638e12, 918e12, 90e9, 12.5e9, 16),
    "tpu7x": Chip(192 * GiB, 7.38e12, 2307e12, 90e9, 12.5e9, 4),
    "h100": Chip(80e9, 3.35e12, 989e12, 450e9, 50e9, gpu=True),
    "h200": Chip(141e9, 4.8e12, 989e12, 450e9, 50e9, gpu=True),
    "b200": Chip(180e9, 7.7e12, 2250e12, 900e9, 50e9, gpu=True),
}
EXAMPLES = (
    "v4:2x2x1, v5e:4x8, v5p:4x4x4, v6e:16x16, tpu7x:4x4x4, 2*v5p:4x4x4 (two slices), "
    "h100:8, h200:4x8 (hosts by chips), b200:8"
)


class Pod(NamedTuple):
    """The devices of a topology."""

    name: str
    chip: Chip
    devices: Sequence[Any]
    slices: int
    platform: str

    @property
    def per_chip(self) -> int:
        """Devices of JAX on one chip: 2 on TPU7x, else 1."""
        coords = [getattr(device, "coords", None) for device in self.devices]
        places = {tuple(at) for at in coords if at is not None}
        return len(self.devices) // (self.slices * len(places)) if places else 1


def pod(text: str) -> Pod:
    """Return the devices that a topology names, without any of them being there.

    Args:
      text: ``CHIP:SIDES``, or ``SLICES*CHIP:SIDES``.

    Raises:
      UsageError: for a topology that does not exist, or whose compiler is not installed.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text.strip())
    if not match or match[2] not in CHIPS or match[1] == "0":
        raise UsageError(f"there is no topology {text!r}. Those known are like {EXAMPLES}.")
    slices, name, chip = int(match[1] or 1), match[2], CHIPS[match[2]]
    if chip.gpu:
        return Pod(text, chip, _nvidia(name, match[3], slices), 1, "cuda")
    return Pod(text, chip, _tpu(text, name, chip, match[3], slices), slices, "tpu")


def _tpu(text: str, name: str, chip: Chip, sides: str, slices: int) -> Sequence[Any]:
    """Return the devices of slices of TPUs, from libtpu."""
    if importlib.util.find_spec("libtpu") is None:
        raise UsageError("plans for TPUs need libtpu's compiler: pip install 'jaxinf[aot]'.")
    # Without these libtpu looks for a TPU that the machine is part of, and complains of none.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-4")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options: dict[str, Any] = {"num_slices": slices} if slices > 1 else {}
    if chip.config:
        options["chip_config_name"] = chip.config
    try:
        return topologies.get_topology_desc(f"{name}:{sides}", platform="tpu", **options).devices
    except Exception as error:
        said = str(error).splitlines()[0].removeprefix("INVALID_ARGUMENT: ")
        raise UsageError(
            f"there is no topology {text!r}: {said}. Those known are like {EXAMPLES}."
        ) from None


def _nvidia(name: str, sides: str, slices: int) -> Sequence[Any]:
    """Return NVIDIA's GPUs, hosts by GPUs of a host, from the CUDA plugin's compiler."""
    if not any(importlib.util.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)):
        raise UsageError(
            f"plans for {name} need the CUDA plugin's compiler, without a GPU: "
            "pip install 'jaxinf[aot]'."
        )
    if slices > 1 or sides.count("x") > 1:
        raise UsageError(f"write {name}:HOSTSxGPUS, or {name}:GPUS for one host.")
    hosts, gpus = ["1", *sides.split("x")][-2:]
    from jax.experimental import topologies
    from jaxinf_kernels.static import cuda

    config = cuda.target(name)
    try:
        return topologies.get_topology_desc(
            "", platform="cuda", topology=f"1x{hosts}x{gpus}", target_config=config
        ).devices
    except Exception as error:
        said = str(error).splitlines()[0]
        raise UsageError(f"the CUDA plugin makes no {name}:{sides}: {said}") from None
