"""Sizes of the kernel's blocks."""

from dataclasses import dataclass

from jaxinf_kernels.chips import CHIPS, Chip


@dataclass(frozen=True)
class Blocks:
    """How the kernel goes about."""

    tokens: int = 512
    """Of the cache that are fetched at a time: a number of whole pages, at least one."""
    rows: int = 128
    """Of one group's queries and heads that attend together, where sequences have many queries."""
    cores: int = 1
    """Of the chip that share the sequences."""
    memory: int = 32 * 2**20
    """Bytes of a core's own memory that the kernel may have; on a GPU a block of threads."""
    stages: int = 4
    """On a GPU: fetches that memory is kept for at most, with the one that is worked on."""


_MiB = 2**20
_HALF = 112 * 2**10
"""Of a GPU's core, which so has two blocks of threads at a time."""
_TABLE = {
    "v4": Blocks(tokens=256, cores=2, memory=12 * _MiB),
    "v5e": Blocks(memory=64 * _MiB),
    "v5p": Blocks(cores=2),
    "v6e": Blocks(memory=64 * _MiB),
    "tpu7x": Blocks(),
    "h100": Blocks(tokens=64, rows=32, cores=132, memory=_HALF),
    "h200": Blocks(tokens=64, rows=32, cores=132, memory=_HALF),
    "b200": Blocks(tokens=64, rows=32, cores=148, memory=_HALF),
}


def blocks_for(chip: Chip | None) -> Blocks:
    """Return the table's sizes for a chip; where none is named, sizes that fit each of them."""
    if chip is None:
        return Blocks(tokens=256, memory=12 * _MiB)
    return _TABLE[chip.name]


assert set(_TABLE) == set(CHIPS)
