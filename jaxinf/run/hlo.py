"""Reading of compiled programs: XLA's text as instructions, and how often each of them runs."""

import functools
import math
import re
from typing import Any, NamedTuple

SHAPE = re.compile(r"(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?")
CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations)=(\{[^}]*\}|%[\w.-]+)")
BRANCH = re.compile(r"(?:true|false)_computation=(%[\w.-]+)")


class Shape(NamedTuple):
    """One array of an instruction's result."""

    dtype: str
    dims: tuple[int, ...]
    memory: int
    """0 for the device's main memory; 1 and more for others."""

    @property
    def bytes(self) -> int:
        """How many bytes it has, without padding."""
        digits = re.search(r"\d+", self.dtype)
        bits = 8 if self.dtype == "pred" else int(digits[0]) if digits else 0
        return math.ceil(math.prod(self.dims) * bits / 8)


class Instruction(NamedTuple):
    """One line of a computation."""

    name: str
    type: str
    opcode: str
    operands: tuple[str, ...]
    inside: str
    """What stands in the parentheses: a constant's value, a parameter's number."""
    rest: str
    """The attributes."""
    root: bool

    @property
    def shapes(self) -> list[Shape]:
        """The arrays of the result, a tuple's in their order."""
        return shapes(self.type)

    def called(self) -> list[str]:
        """The computations that it names."""
        found = CALLED.findall(self.rest) + BRANCH.findall(self.rest)
        return [name for part in found for name in re.findall(r"%([\w.-]+)", part)]

    def attribute(self, name: str) -> str:
        """A computation that it names by this attribute."""
        match = re.search(rf"\b{name}=%([\w.-]+)", self.rest)
        return match[1] if match else ""


class Program(NamedTuple):
    """A compiled program."""

    computations: dict[str, dict[str, Instruction]]
    entry: str
    text: str
    """Its head, which holds the tables of source lines."""

    def source(self, instruction: Instruction) -> str:
        """Return the ``file:line`` that an instruction came from, else its operation's name."""
        direct = re.search(r'source_file="([^"]*)".*?source_line=(\d+)', instruction.rest)
        if direct:
            return f"{direct[1]}:{direct[2]}"
        frame = re.search(r"stack_frame_id=(\d+)", instruction.rest)
        place = _frames(self.text).get(int(frame[1]), "") if frame else ""
        operation = re.search(r'op_name="([^"]*)"', instruction.rest)
        return place or (operation[1] if operation else "")


@functools.lru_cache(maxsize=8)
def _frames(head: str) -> dict[int, str]:
    """Return frame -> ``file:line`` from the tables at the head of a program."""
    names = dict(re.findall(r'^(\d+) "([^"]*)"$', head.partition("FunctionNames")[0], re.M))
    line = re.compile(r"^(\d+) \{file_name_id=(\d+) .*?\bline=(\d+)", re.M)
    places = {number: f"{names.get(file, '')}:{at}" for number, file, at in line.findall(head)}
    frames = re.findall(r"^(\d+) \{file_location_id=(\d+)", head, re.M)
    return {int(number): places.get(place, "") for number, place in frames}


def shapes(text: str) -> list[Shape]:
    """Return the arrays of a type, those in tuples too."""
    found = []
    for dtype, dims, layout in SHAPE.findall(text):
        memory = re.search(r"S\((\d+)\)", layout)
        sizes = tuple(int(size.removeprefix("<=")) for size in dims.split(",") if size)
        found.append(Shape(dtype, sizes, int(memory[1]) if memory else 0))
    return found


def parse(text: str) -> Program:
    """Return a compiled program from its text (``Compiled.as_text()``)."""
    computations: dict[str, dict[str, Instruction]] = {}
    entry, current, head = "", None, []
    for line in text.splitlines():
        if current is None:
            start = re.match(r"(ENTRY )?%?([\w.-]+) \(.*\{$", line)
            if start:
                current = computations.setdefault(start[2], {})
                entry = start[2] if start[1] else entry
            elif not computations:
                head.append(line)
        elif line.startswith("}"):
            current = None
        elif " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return Program(computations, entry, "\n".join(head))


def _instruction(line: str) -> Instruction:
    """Return the instruction of a line."""
    left, _, right = re.sub(r"/\*.*?\*/", "", line).partition(" = ")
    end = _closing(right, 0) if right.startswith("(") else right.index(" ")
    opening = right.index("(", end)
    closing = _closing(right, opening) - 1
    inside = right[opening + 1 : closing]
    return Instruction(
        name=left.replace("ROOT", "").strip().lstrip("%"),
        type=right[:end],
        opcode=right[end:opening].strip(),
        operands=tuple(re.findall(r"%([\w.-]+)", inside)),
        inside=inside,
        rest=right[closing + 1 :],
        root="ROOT" in left,
    )


def _closing(text: str, start: int) -> int:
    """Return the position after the parenthesis that closes the one at ``start``."""
    depth = 0
    for position in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[position], 0)
        if depth == 0:
            return position + 1
    return len(text)


class Runs(NamedTuple):
    """How often the computations of a program run."""

    times: dict[str, int]
    fused: dict[str, str]
    """Those whose instructions have no arrays of their own in memory, and what calls the fusion."""
    unknown: list[Instruction]
    """Loops without a fixed number of trips; their bodies are counted once."""


def runs(program: Program) -> Runs:
    """Return how often each computation runs, a loop's body as often as the loop has trips."""
    found = Runs({}, {}, [])

    def visit(name: str, times: int, caller: str = "") -> None:
        if name not in program.computations:
            return
        found.times[name] = found.times.get(name, 0) + times
        if caller:
            found.fused[name] = caller
        for one in program.computations[name].values():
            if one.opcode == "while":
                trips = trip_count(program, name, one)
                if trips is None:
                    found.unknown.append(one)
                trips = 1 if trips is None else trips
                visit(one.attribute("body"), times * trips, caller)
                visit(one.attribute("condition"), times * (trips + 1), caller)
            elif one.opcode in ("fusion", "call", "conditional", "async-start"):
                for called in one.called():
                    visit(called, times, caller or (name if one.opcode == "fusion" else ""))

    visit(program.entry, 1)
    return found


def trip_count(program: Program, home: str, loop: Instruction) -> int | None:
    """Return how often a loop's body runs, or None where that is not fixed.

    The compiler's own note is taken where there is one; else the loop's condition must compare a
    counter with a constant, and the counter start at a constant.
    """
    noted = re.search(r'"known_trip_count":\{"n":"(\d+)"\}', loop.rest)
    if noted:
        return int(noted[1])
    condition = program.computations[loop.attribute("condition")]
    body = program.computations[loop.attribute("body")]
    root = next(one for one in condition.values() if one.root)
    start = {i: (home, name) for i, name in enumerate(_initial(program, home, loop))}
    compare, operands = root, [_origin(condition, name) for name in root.operands]
    if root.opcode == "fusion":
        inner = program.computations[root.attribute("calls")]
        compare = next(one for one in inner.values() if one.root)
        operands = [
            operands[int(inner[name].inside)] if inner[name].opcode == "parameter"
            else inner[name] for name in compare.operands
        ]  # fmt: skip
    direction = re.search(r"direction=(\w+)", compare.rest)
    if compare.opcode != "compare" or not direction or len(operands) != 2:
        return None
    values, steps = [], []
    for one in operands:
        index = _place(one)
        values.append(_value(one) if index is None else _constant(program, *start[index]))
        steps.append(0 if index is None else _step(program, body, index))
    if None in values or None in steps or (steps[0] == 0) == (steps[1] == 0):
        return None
    distance = abs(values[1] - values[0]) + (direction[1] in ("LE", "GE"))
    return math.ceil(distance / abs(steps[0] or steps[1]))


def _initial(program: Program, home: str, loop: Instruction) -> tuple[str, ...]:
    """Return the names of what a loop's tuple holds at the start."""
    operand = program.computations[home][loop.operands[0]]
    return operand.operands if operand.opcode == "tuple" else ()


def _origin(computation: dict[str, Instruction], name: str) -> Instruction:
    """Return where a value comes from, through copies."""
    one = computation[name]
    while one.opcode in ("copy", "bitcast", "convert", "copy-start", "copy-done") and one.operands:
        one = computation[one.operands[0]]
    return one


def _value(one: Instruction) -> int | None:
    """Return a constant's whole number."""
    whole = one.opcode == "constant" and re.fullmatch(r"-?\d+", one.inside.strip())
    return int(one.inside) if whole else None


def _constant(program: Program, home: str, name: str) -> int | None:
    """Return the whole number that a name stands for in a computation, where it is a constant."""
    return _value(_origin(program.computations[home], name))


def _place(one: Instruction) -> int | None:
    """Return which place of a tuple an instruction reads, or None."""
    index = re.search(r"index=(\d+)", one.rest)
    return int(index[1]) if one.opcode == "get-tuple-element" and index else None


def _step(program: Program, body: dict[str, Instruction], index: int) -> int | None:
    """Return by how much a loop's body moves a place of its tuple; None where that is not fixed."""
    root = next(one for one in body.values() if one.root)
    if root.opcode != "tuple":
        return None
    return _offset(program, [(body, ())], root.operands[index], index)


def _offset(program: Program, frames: list[Any], name: str, index: int) -> int | None:
    """Return a value minus what a place of the loop's tuple held before; None where not fixed.

    Args:
      program: which holds the fusions.
      frames: the computation that holds the value, with the operands that it was given, and those
        that it is within.
      name: the value's.
      index: the place's.
    """
    frames, one = _out(frames, name)
    if len(frames) == 1 and _place(one) == index:
        return 0
    if one.opcode == "constant":
        return None
    if one.opcode == "fusion":
        inner = program.computations[one.attribute("calls")]
        root = next(part for part in inner.values() if part.root)
        return _offset(program, [*frames, (inner, one.operands)], root.name, index)
    if one.opcode not in ("add", "subtract"):
        return None
    first = _offset(program, frames, one.operands[0], index)
    second = _value(_out(frames, one.operands[1])[1])
    if first is None and one.opcode == "add":
        first = _offset(program, frames, one.operands[1], index)
        second = _value(_out(frames, one.operands[0])[1])
    if first is None or second is None:
        return None
    return first + second if one.opcode == "add" else first - second


def _out(frames: list[Any], name: str) -> tuple[list[Any], Instruction]:
    """Return where a value comes from, through copies and out of fusions."""
    one = _origin(frames[-1][0], name)
    while one.opcode == "parameter" and len(frames) > 1:
        given = frames[-1][1][int(one.inside)]
        frames = frames[:-1]
        one = _origin(frames[-1][0], given)
    return frames, one
