"""The groups of devices that collectives join, and the axes of a mesh that they follow."""

import math
import re

import numpy as np
from jax.sharding import Mesh


def axes_of(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    """Return the axes of a mesh along which the devices of a group differ.

    Args:
      groups: places in the mesh's order of devices, a row a group.
      mesh: the mesh.
    """
    places = np.unravel_index(groups, mesh.devices.shape)
    names = zip(mesh.axis_names, places, strict=True)
    return tuple(name for name, at in names if (at != at[:, :1]).any())


def replica_groups(text: str, devices: int) -> np.ndarray:
    """Return the groups of a collective, a row a group, from any of the forms they are written in.

    ``{{0,1},{2,3}}`` is a list, ``[2,2]<=[2,2]T(1,0)`` a transposed range,
    ``mesh['a'=2,'b'=2] {'a'}`` names axes of a mesh, and ``'a':(1)2`` a part of one.
    """
    listed = re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", text)
    if listed:
        rows = re.findall(r"\{([\d,]+)\}", listed[1])
        return np.array([[int(number) for number in row.split(",")] for row in rows])
    ranged = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if ranged:
        shape, dims, order = ([int(n) for n in (part or "").split(",") if n] for part in
                              ranged.groups())  # fmt: skip
        numbers = np.arange(math.prod(dims)).reshape(dims)
        return (numbers.transpose(order) if order else numbers).reshape(shape)
    named = re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, device_ids=\(([^)]*)\))? \{([^}]*)\}", text
    )
    if named:
        return _named(*named.groups())
    return np.arange(devices)[None]


def _named(axes: str, order: str | None, chosen: str) -> np.ndarray:
    """Return the groups that names of a mesh's axes mean."""
    sizes = {name: int(size) for name, size in re.findall(r"'?([\w.]+)'?=(\d+)", axes)}
    ids = [int(number) for number in re.findall(r"\d+", order or "")]
    numbers = np.array(ids) if ids else np.arange(math.prod(sizes.values()))
    dims, group = [], []
    parts: dict[str, list[tuple[int, int]]] = {}
    for name, before, size in re.findall(r"'?([\w.]+)'?(?::\((\d+)\)(\d+))?", chosen):
        parts.setdefault(name, []).append((int(before or 1), int(size or sizes[name])))
    for name, full in sizes.items():
        done = 1
        for before, size in sorted(parts.get(name, [])):
            dims.append(before // done)
            group.append(len(dims))
            dims.append(size)
            done = before * size
        dims.append(full // done)
    rest = [axis for axis in range(len(dims)) if axis not in group]
    table = numbers.reshape(dims).transpose([*rest, *group])
    return table.reshape(-1, math.prod(dims[axis] for axis in group))
