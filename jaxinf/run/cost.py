"""What a compiled program costs one device: operations, and bytes of memory and networks."""

import math
import re
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

from jaxinf.run.groups import axes_of, replica_groups
from jaxinf.run.hlo import Instruction, Program, Shape, runs, shapes

KINDS = (
    "all-reduce",
    "all-gather",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
)
FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional",
    "call", "partition-id", "replica-id", "after-all", "async-start", "opt-barrier", "send", "recv",
    "iota", "broadcast",
}  # fmt: skip


class Collective(NamedTuple):
    """Collectives of one kind over the same axes."""

    kind: str
    axes: tuple[str, ...]
    """The axes of the mesh along which the devices of a group differ."""
    size: int
    """Devices in a group."""
    count: int
    bytes: int
    """What they hold whole, together: the sum's, or the gathered array's bytes."""
    sent: float
    """What one device sends for them, by the best algorithm for a ring."""
    group: tuple[int, ...]
    """Places in the mesh's order of the devices of one group."""


class Cost(NamedTuple):
    """What one device computes, moves and sends for one run of a program."""

    flops: float
    """Of products and convolutions, and what Pallas calls declare."""
    bytes: float
    """To and from main memory."""
    collectives: list[Collective]
    remarks: list[str]


def cost(program: Program, mesh: Mesh, slices: int = 1) -> Cost:
    """Return what a compiled program costs one device, loops counted by their trips.

    Args:
      program: the program of one device.
      mesh: the devices it was compiled for.
      slices: how many slices they lie in.
    """
    found = runs(program)
    flops = moved = 0.0
    undeclared = 0
    gathered: dict[tuple, Collective] = {}
    started: set[tuple[str, str]] = set()
    for name, times in found.times.items():
        computation = program.computations[name]
        for one in computation.values():
            flops += times * _flops(computation, one)
            if name not in found.fused:
                moved += times * _moved(program, computation, one)
            if "tpu_custom_call" in one.rest and one.opcode == "custom-call":
                undeclared += not _declared(one, "flops")
            whole = _collective(computation, one, name, mesh, slices)
            channel = re.search(r"channel_id=(\d+)", one.rest)
            if whole is None:
                continue
            if name in found.fused and channel:  # a fusion may start it, and another one end it
                pair = found.fused[name], channel[0]
                if pair in started:
                    continue
                started.add(pair)
            key = (whole.kind, whole.axes, whole.size)
            old = gathered.get(key, whole._replace(count=0, bytes=0, sent=0.0))
            gathered[key] = old._replace(
                count=old.count + times,
                bytes=old.bytes + times * whole.bytes,
                sent=old.sent + times * whole.sent,
            )
    remarks = [
        f"the loop at {program.source(one) or one.name} has no fixed number of trips; its body "
        "is counted once"
        for one in found.unknown
    ]
    if undeclared:
        remarks.append(f"{undeclared} Pallas calls declare no cost_estimate; they count as nothing")
    ordered = sorted(gathered.values(), key=lambda one: -one.sent)
    return Cost(flops, moved, ordered, remarks)


def _flops(computation: dict[str, Instruction], one: Instruction) -> float:
    """Return the operations of one instruction: twice the products that it sums."""
    given = [computation[name].shapes[0].dims for name in one.operands if name in computation]
    if one.opcode == "dot" or (one.opcode == "custom-call" and "__cublas$" in one.rest):
        return 2.0 * math.prod(one.shapes[0].dims) * _contracted(one.rest, given[0])
    if one.opcode == "convolution":
        return _convolution(one, given[0], given[1], one.shapes[0].dims)
    if one.opcode != "custom-call":
        return 0.0
    cudnn = re.search(r'"__cudnn\$conv(\w+)"', one.rest)
    if cudnn:  # its window and labels are those of the convolution that it is the gradient of
        result = one.shapes[0].dims
        if cudnn[1] == "BackwardInput":
            return _convolution(one, result, given[1], given[0])
        if cudnn[1] == "BackwardFilter":
            return _convolution(one, given[0], result, given[1])
        return _convolution(one, given[0], given[1], result)
    return _declared(one, "flops") if "tpu_custom_call" in one.rest else 0.0


def _contracted(rest: str, lhs: tuple[int, ...]) -> int:
    """Return how many products each number of a dot sums."""
    match = re.search(r'lhs_contracting_dim(?:s=\{|ension[sS]"?:\[)([\d,"]*)', rest)
    dims = re.findall(r"\d+", match[1]) if match else []
    return math.prod(lhs[int(dim)] for dim in dims)


def _declared(one: Instruction, what: str) -> float:
    """Return what a Pallas call's ``cost_estimate`` declares."""
    match = re.search(rf'"cost_estimate":\{{[^}}]*"{what}":"(\d+)"', one.rest)
    return float(match[1]) if match else 0.0


def _convolution(
    one: Instruction, lhs: tuple[int, ...], rhs: tuple[int, ...], result: tuple[int, ...]
) -> float:
    """Return a convolution's operations, without its products with padding and holes.

    A product of matrices with a batch axis is a convolution with holes to this compiler, so that
    most of what its window covers is no product at all.
    """
    labels = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", one.rest)
    if labels is None:
        return 0.0
    left, right, out = labels[1], labels[2], labels[3]
    window = dict(re.findall(r"(\w+)=([\d_x-]+)", (re.search(r"window=\{([^}]*)", one.rest) or
                                                  [""] * 2)[1]))  # fmt: skip
    groups = re.search(r"batch_group_count=(\d+)", one.rest)
    batch = lhs[left.index("b")] // int(groups[1] if groups else 1)
    products = batch * rhs[right.index("i")] * rhs[right.index("o")]
    for axis in range(len(left) - 2):
        at = str(axis)
        products *= _positions(
            lhs[left.index(at)],
            rhs[right.index(at)],
            result[out.index(at)],
            {key: value.split("x")[axis] for key, value in window.items()},
        )
    return 2.0 * products


def _positions(size: int, kernel: int, out: int, window: dict[str, str]) -> int:
    """Return how many pairs of an output and a place in the window meet a number of the input."""
    stride, hole = int(window.get("stride", 1)), int(window.get("lhs_dilate", 1))
    step, pad = int(window.get("rhs_dilate", 1)), int(window.get("pad", "0").split("_")[0])
    place = np.arange(out)[:, None] * stride + np.arange(kernel) * step - pad
    return int(((place >= 0) & (place <= (size - 1) * hole) & (place % hole == 0)).sum())


def _moved(program: Program, computation: dict[str, Instruction], one: Instruction) -> float:
    """Return the bytes of main memory that one instruction reads and writes."""
    if one.opcode in FREE or one.opcode.endswith("-done"):
        return 0.0
    if one.opcode == "custom-call" and "tpu_custom_call" in one.rest:
        return _declared(one, "bytes_accessed") or _held(one.shapes) + _operands(computation, one)
    if one.opcode == "custom-call" and "AllocateBuffer" in one.rest:
        return 0.0
    if one.opcode.endswith("-start"):
        return _operands(computation, one) + _held(one.shapes[:1])
    if one.opcode in ("dynamic-slice", "slice", "gather"):
        return 2 * _held(one.shapes)
    if one.opcode == "dynamic-update-slice":
        return 2 * _held(computation[one.operands[1]].shapes)
    if one.opcode != "fusion":
        return _operands(computation, one) + _held(one.shapes)
    inner = program.computations[one.attribute("calls")]
    total = sum(_written(inner, root, shape) for root, shape in _outputs(inner, one))
    for part in inner.values():
        if part.opcode == "parameter":
            total += _read(inner, part, computation[one.operands[int(part.inside)]].shapes)
    return total


def _held(found: list[Shape]) -> float:
    """Return the bytes of those arrays that lie in main memory."""
    return float(sum(shape.bytes for shape in found if shape.memory == 0))


def _operands(computation: dict[str, Instruction], one: Instruction) -> float:
    """Return the bytes of main memory that an instruction's operands have."""
    held = (_held(computation[name].shapes) for name in one.operands if name in computation)
    return float(sum(held))


def _outputs(
    inner: dict[str, Instruction], fusion: Instruction
) -> list[tuple[Instruction, list[Shape]]]:
    """Return a fusion's results, each with the arrays it is in the fusion's type."""
    root = next(part for part in inner.values() if part.root)
    if root.opcode != "tuple" or len(root.operands) != len(fusion.shapes):
        return [(root, fusion.shapes)]
    return [(inner[n], [s]) for n, s in zip(root.operands, fusion.shapes, strict=True)]


def _written(inner: dict[str, Instruction], root: Instruction, shape: list[Shape]) -> float:
    """Return the bytes that a fusion writes for one result; of an update in place its part."""
    while root.opcode in ("bitcast", "copy") and root.operands:
        root = inner[root.operands[0]]
    if root.opcode == "dynamic-update-slice" and _held(shape):
        return float(sum(part.bytes for part in inner[root.operands[1]].shapes))
    return _held(shape)


def _read(inner: dict[str, Instruction], part: Instruction, given: list[Shape]) -> float:
    """Return the bytes that a fusion reads of one operand; of one only sliced the slices."""
    if not _held(given):
        return 0.0
    users = [one for one in inner.values() if part.name in one.operands]
    sliced = 0.0
    for user in users:
        first = user.operands[0] == part.name
        if user.opcode in ("dynamic-slice", "slice", "gather") and first:
            sliced += sum(shape.bytes for shape in user.shapes)
        elif not (user.opcode == "dynamic-update-slice" and first):
            return _held(given)
    return min(sliced, _held(given))


def _collective(
    computation: dict[str, Instruction], one: Instruction, home: str, mesh: Mesh, slices: int
) -> Collective | None:
    """Return what one instruction sends to other devices, or None."""
    kind = one.opcode.removesuffix("-start")
    held = sum(s.bytes for name in one.operands if name in computation
               for s in computation[name].shapes)  # fmt: skip
    across = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
    if one.opcode == "send" and across:
        held = computation[one.operands[0]].shapes[0].bytes
        kind = across[1].lower().replace("_", "-")
        return _sends(kind, ("slice",), slices, held, _across(mesh, slices))
    if kind not in KINDS:
        return None
    if kind == "collective-permute":
        pairs = np.array(re.findall(r"\{(\d+),(\d+)\}", one.rest.split("source_target_pairs=")[1]
                                    .split("}}")[0] + "}"), int)  # fmt: skip
        return _sends(kind, axes_of(pairs, mesh), 2, held, tuple(pairs[0].tolist()))
    groups = replica_groups(one.rest, mesh.devices.size)
    if "all-reduce-scatter" in home and kind == "all-reduce":
        kind = "reduce-scatter"
    if groups.shape[1] == 1:
        return None
    return _sends(kind, axes_of(groups, mesh), groups.shape[1], held, tuple(groups[0].tolist()))


def _sends(
    kind: str, axes: tuple[str, ...], size: int, held: int, group: tuple[int, ...]
) -> Collective:
    """Return a collective of a group of devices that hold so many bytes each."""
    share = (size - 1) / size
    whole = held * size if kind == "all-gather" else held
    if kind.startswith("collective"):
        return Collective(kind, axes, size, 1, held, float(held), group)
    return Collective(
        kind, axes, size, 1, whole, whole * share * (1 + (kind == "all-reduce")), group
    )


def _across(mesh: Mesh, slices: int) -> tuple[int, ...]:
    """Return one device of each slice; slices lie outermost in a mesh."""
    return tuple(range(0, mesh.devices.size, mesh.devices.size // slices))


def largest(program: Program, count: int = 5) -> list[tuple[int, str, str]]:
    """Return the largest arrays that a program makes in main memory: bytes, type, source line."""
    found = runs(program)
    seen: dict[tuple[str, str], int] = {}
    for name in found.times:
        if name in found.fused:
            continue
        for one in program.computations[name].values():
            if one.opcode in FREE - {"broadcast", "iota"} or one.opcode.endswith("-done"):
                continue
            for shape in shapes(one.type):
                if shape.memory == 0:
                    text = f"{shape.dtype}[{','.join(map(str, shape.dims))}]"
                    seen.setdefault((text, program.source(one)), shape.bytes)
    ordered = sorted(seen.items(), key=lambda item: -item[1])[:count]
    return [(size, text, source) for (text, source), size in ordered]
