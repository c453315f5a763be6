"""What a kernel must know of the chip that it is compiled for: no device is ever asked.

The chip is named by the caller, or is that of the mesh in force; a program compiled on a laptop for
a pod is the pod's.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import jax


@dataclass(frozen=True)
class Chip:
    """One generation of accelerators; of a TPU one core, of which some chips have two."""

    name: str
    platform: str
    """``tpu`` or ``cuda``."""
    memory: int
    """Bytes of a core's own memory: a TPU's VMEM, an SM's shared memory that a block can have."""
    speed: Mapping[str, float] = field(hash=False)
    """Products of a format beside those of bfloat16; a format that is not here is refused by the
    compiler, and computed by widening it first."""
    unit: int = 128
    """Rows and columns of a TPU's matrix unit."""
    generation: str = ""
    """Of a GPU: ``"hopper"`` or ``"blackwell"``."""
    cores: int = 1
    """Of a GPU, its multiprocessors."""
    traffic: float = float("inf")
    """Of a TPU, bytes of device memory that come to a core in a cycle: bandwidth by clock."""

    @property
    def blackwell(self) -> bool:
        """Whether tensor cores have memory of their own."""
        return self.generation == "blackwell"

    def pays(self, name: str) -> bool:
        """Whether products of a format take less time than those of bfloat16."""
        return self.speed.get(name, 0.0) > 1.0


MiB = 2**20
_V5 = {"int8": 2.0, "int4": 4.0, "e4m3": 1.0, "e5m2": 1.0}
_HOPPER = {"int8": 2.0, "e4m3": 2.0, "e5m2": 2.0}
_BLACKWELL = {"e4m3": 2.0, "e5m2": 2.0, "mxfp8": 2.0, "mxfp4": 4.0, "nvfp4": 4.0}
_CHIPS = (
    Chip("v4", "tpu", 16 * MiB, {}, traffic=585.0),
    Chip("v5e", "tpu", 128 * MiB, _V5, traffic=546.0),
    Chip("v5p", "tpu", 64 * MiB, _V5, traffic=790.0),
    Chip("v6e", "tpu", 128 * MiB, _V5, 256, traffic=936.0),
    Chip("tpu7x", "tpu", 64 * MiB,
         {"int8": 1.0, "int4": 2.0, "e4m3": 2.0, "e5m2": 2.0, "mxfp4": 2.0, "nvfp4": 2.0}, 256,
         traffic=1677.0),
    Chip("h100", "cuda", 232448, _HOPPER, generation="hopper", cores=132),
    Chip("h200", "cuda", 232448, _HOPPER, generation="hopper", cores=132),
    Chip("b200", "cuda", 232448, _BLACKWELL, generation="blackwell", cores=148),
)  # fmt: skip
CHIPS: Mapping[str, Chip] = {chip.name: chip for chip in _CHIPS}
"""By name. Speeds of TPUs are counts of matrix-unit pushes in compiled programs, those of GPUs
their makers' figures."""

_KINDS = (
    (r"TPU v4", "v4"),
    (r"TPU v5 ?(lite|e)", "v5e"),
    (r"TPU v5", "v5p"),
    (r"TPU v6", "v6e"),
    (r"TPU ?v?7", "tpu7x"),
    (r"H100", "h100"),
    (r"H200", "h200"),
    (r"B200", "b200"),
)


def chip_named(name: str) -> Chip:
    """Return a chip by its name.

    Raises:
      ValueError: for a name that is not in ``CHIPS``.
    """
    if name not in CHIPS:
        raise ValueError(f"no chip is named {name!r}; there are {', '.join(CHIPS)}.")
    return CHIPS[name]


def chip_here() -> Chip | None:
    """Return the chip of the mesh in force while a program is traced; None where none says."""
    device: Any = getattr(jax.sharding.get_abstract_mesh(), "abstract_device", None)
    kind = getattr(device, "device_kind", None) or ""
    return next((CHIPS[name] for pattern, name in _KINDS if re.search(pattern, kind)), None)
