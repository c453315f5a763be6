"""Compilers' reports are read as they are meant, and blocks are chosen by them."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import pytest
from jaxinf_kernels.attention import attention, blocks, masks
from jaxinf_kernels.attention.api import prepare
from jaxinf_kernels.attention.blocks import Blocks, blocks_for, costs, predicted
from jaxinf_kernels.attention.schedule import Sizes
from jaxinf_kernels.chips import CHIPS
from jaxinf_kernels.operation import How
from jaxinf_kernels.static import cuda, tpu

TEXT = """\
LB: loop body
     0   :  { %1 = first }
   0x1 LB: > { %2 = in_the_loop } /* Start region 1 */
   0x2   : > { %3 = sbr.rel (%p1) target = $region7 }
   0x3   :  {}
   0x4   :  {}
   0x5   :  {}
   0x6   :  {}
   0x7   : > { %4 = under_a_condition }
   0x8   : > { %5 = sbr.rel (%p2) target = $region9 }
   0x9   :  {}
   0xa   :  {}
   0xb   :  {}
   0xc   :  {}
   0xd   : > { %6 = deeper }
   0xe   : > { %7 = deeper }
   0xf PF: > { %8 = behind } /* Start/End empty region 9 */
  0x10 PF: > { %9 = sbr.rel (!%p3) target = $region1 } /* Start region 7 */
  0x11   :  { %10 = last }
"""
PTXAS = """\
ptxas info    : Compiling entry function 'body_mosaic_gpu_kernel' for 'sm_90a'
ptxas info    : Function properties for body_mosaic_gpu_kernel
    0 bytes stack frame, 20 bytes spill stores, 24 bytes spill loads
ptxas info    : Used 168 registers, used 2 barriers, 1 bytes smem
"""


def test_parts_of_a_schedule():
    lines = TEXT.splitlines()
    full = [(0.5 if "deeper" in line else 0.0, 0) for line in lines[1:]]
    root = tpu.parse(lines, full)
    (loop,) = root.parts
    (branch,) = loop.parts
    (inner,) = branch.parts
    assert [part.kind for part in root.walk()] == ["kernel", "loop", "branch", "branch"]
    # a branch's delay slots are its own part's, as is what follows the region behind it
    assert [part.bundles for part in root.walk()] == [2, 7, 7, 2]
    assert [part.mxu for part in root.walk()] == [0, 0, 0, 1.0]
    total = root.total(lambda part: {id(loop): 10, id(branch): 0.5, id(inner): 1}[id(part)])
    assert total.bundles == 2 + 10 * (7 + 0.5 * (7 + 2))
    assert total.use == 10 * 0.5 * 1.0 / total.bundles


def test_registers_and_spills_are_read():
    (found,) = cuda.read(PTXAS)
    assert found == cuda.Kernel("body", 168, 20, "sm_90a")
    with pytest.raises(ValueError, match="no GPU is named 'h300'; there are h100"):
        cuda.target("h300")


def test_chips_are_named():
    with pytest.raises(ValueError, match="no TPU is named 'v9'; there are v4"):
        tpu.device("v9")


def problem(mask=None, **how):
    found = []

    def trace(q):
        found.append(prepare(q, q, q, mask, None, None, None, None, 1.0, How(**how))[0])
        return q

    jax.eval_shape(trace, jax.ShapeDtypeStruct((4096, 2, 128), jnp.bfloat16))
    return found[0]


def sized(tokens, width=128, dtype=jnp.bfloat16):
    return [jax.ShapeDtypeStruct((1, 2, tokens, width), dtype)] * 3


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("chip", ["v4", "v5e", "v5p", "v6e", "tpu7x"])
def test_blocks_are_those_that_cost_the_least(chip, reverse):
    """Against a count written apart: whole blocks below the diagonal, others on it."""
    table = costs(chip, reverse)
    assert table

    def causal(size, cost):
        down, across = 4096 // size.rows, 4096 // size.columns
        low = [(i * size.rows, j * size.columns) for i in range(down) for j in range(across)]
        some = sum(j < i + size.rows for i, j in low)
        full = sum(j + size.columns <= i + 1 for i, j in low)
        lines = across if reverse else down
        visits = some * cost.step + full * cost.full + (some - full) * cost.masked
        return visits + lines * (cost.first + cost.last) + cost.once

    best = min(table, key=lambda size: causal(size, table[size]))
    assert blocks_for(problem(masks.causal(), chip=chip), *sized(4096), reverse) == best


def test_visits_take_as_long_as_what_they_read_takes_to_come(monkeypatch):
    given = problem(chip="v5e"), *sized(4096)
    there = blocks_for(*given)
    cost = costs("v5e", False)[there]
    sizes = Sizes(4096, 4096, there.rows, there.columns)
    fast, slow = (predicted(given[0], sizes, cost, False, arrival) for arrival in (0.0, 1e6))
    visits = (4096 // there.rows) * (4096 // there.columns)
    own = visits * (cost.step + cost.full)
    assert slow - fast == visits * 1e6 - own
    slower = dataclasses.replace(CHIPS["v5e"], traffic=0.1)
    monkeypatch.setitem(CHIPS, "v5e", slower)
    # every row of blocks reads all keys: as few rows as there are
    assert blocks_for(*given).rows == max(size.rows for size in costs("v5e", False))


def test_blocks_that_are_asked_for_or_cannot_be_known():
    mine = Blocks(128, 256, 128)
    assert blocks_for(problem(chip="v5e", blocks=mine), *sized(4096)) == mine
    assert blocks_for(problem(), *sized(4096)) == Blocks()
    wide = blocks_for(problem(chip="v6e"), *sized(8192, 256, jnp.float32))
    assert max(wide[:2]) <= 512  # four times the bytes of the table's
    assert max(blocks_for(problem(chip="v6e"), *sized(8192))[:2]) >= 1024
    with pytest.raises(ValueError, match="no chip is named"):
        attention(*[jnp.ones((4, 1, 2))] * 3, chip="v9", blocks=mine)


def test_the_table_says_what_it_was_made_by():
    held = json.loads((blocks.Path(blocks.__file__).parent / "costs.json").read_text())
    assert all("libtpu" in chip["made by"] for chip in held.values())
