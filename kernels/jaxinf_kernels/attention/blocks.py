"""Sizes of blocks by what their schedules cost.

``costs.json`` holds, for chips and sizes of blocks, how many instruction words libtpu's schedule
has for each part of a kernel (kernels/bench/attention_schedules.py writes it). For a problem the
sizes are taken whose visits cost the least, or as much as what they read takes to come from device
memory: what is masked, how long sequences are and how wide heads are decide.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxinf_kernels.attention.masks import FULL, MIXED
from jaxinf_kernels.attention.problem import Problem
from jaxinf_kernels.attention.schedule import FIRST, LAST, Sizes, schedule
from jaxinf_kernels.tiles import LANES, up


class Blocks(NamedTuple):
    """How a kernel goes about."""

    rows: int = 512
    """Queries in a block."""
    columns: int = 512
    """Keys in a block of memory."""
    inner: int = 512
    """Keys in a product, of the forward kernel."""


class Cost(NamedTuple):
    """Instruction words of the parts of a kernel, heads of 128 numbers in bfloat16."""

    step: float
    """Of every visit."""
    full: float
    """Of a block that is seen whole."""
    masked: float
    first: float
    """Of the first visit of a row of blocks, or a column in reverse."""
    last: float
    once: float
    """Of a head."""


@lru_cache
def costs(chip: str, reverse: bool) -> dict[Blocks, Cost]:
    """Return what is known of a chip; nothing where it is not in the table."""
    held = json.loads((Path(__file__).parent / "costs.json").read_text())
    rows = held.get(chip, {}).get("reverse" if reverse else "forward", [])
    return {Blocks(*row["blocks"]): Cost(**row["cost"]) for row in rows}


def predicted(
    problem: Problem, sizes: Sizes, cost: Cost, reverse: bool, arrival: float = 0.0
) -> float:
    """Return the cycles of a head, as far as its mask is known.

    Args:
      problem: what is asked.
      sizes: of its blocks.
      cost: of the kernel's parts.
      reverse: whether of the reverse rule, whose visits go along columns.
      arrival: cycles in which what a visit reads comes from device memory, beside which the visit
        before it is computed.
    """
    full_visit, masked_visit = (max(cost.step + a, arrival) for a in (cost.full, cost.masked))
    kinds = schedule(problem, sizes, by_rows=not reverse).kinds
    full, masked = ((kinds & 3 == kind).sum() for kind in (FULL, MIXED))
    first, last = ((kinds & flag != 0).sum() for flag in (FIRST, LAST))
    visits = full * full_visit + masked * masked_visit + (len(kinds) - full - masked) * cost.step
    return float(visits + first * cost.first + last * cost.last + cost.once)


def blocks_for(problem: Problem, q: Any, k: Any, v: Any, reverse: bool = False) -> Blocks:
    """Return the sizes that were asked for, or those that cost the least.

    Args:
      problem: what is asked; its chip counts, as far as it is known.
      q: queries [B, H, N, D], of which shape and dtype count.
      k: keys.
      v: values.
      reverse: for the reverse rule.
    """
    chip = problem.how.known
    if isinstance(problem.how.blocks, Blocks):
        return problem.how.blocks
    if chip is None:
        return Blocks()
    (n, d), m, e = q.shape[2:], k.shape[2], v.shape[3]
    wide = q.dtype.itemsize * (up(d, LANES) + up(e, LANES)) / 512
    best, least = Blocks(), float("inf")
    for blocks, cost in costs(chip.name, reverse).items():
        # twice as wide, or in float32, a block takes twice the room of those in the table
        if wide > 1 and max(blocks[:2]) * wide > 2048:
            continue
        rows, columns = min(blocks.rows, up(n, LANES)), min(blocks.columns, up(m, LANES))
        shrunk = rows * columns / (blocks.rows * blocks.columns)
        scaled = cost._replace(full=cost.full * shrunk, masked=cost.masked * shrunk)
        # forward a visit reads keys and values, in reverse queries and cotangents
        arrival = (rows if reverse else columns) * 512 * wide / chip.traffic
        found = predicted(problem, Sizes(n, m, rows, columns), scaled, reverse, arrival)
        if found < least:
            best, least = blocks, found
    return best
