"""What devices say to each other in a compiled program, read from its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "collective-permute",
    "ragged-all-to-all",
    "collective-broadcast",
)

HLO_BITS = {"pred": 8, "bf16": 16, "f16": 16, "f32": 32, "f64": 64}

_START = re.compile(rf"= (.*?) ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) .*->.*\{\s*$")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_LIMIT = re.compile(r"[su]32\[\]\S* constant\((\d+)\)")
_CALLS = re.compile(r"(?:calls|to_apply|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collectives(NamedTuple):
    """All operations of one kind in a program."""

    kind: str
    count: int
    """How often they are executed: once for each turn of a loop."""
    bytes: int
    """Bytes of one device's results, over all of them."""

    def on_links(self, devices: int) -> float:
        """Returns the bytes that a device sends, or receives, where all take part in a ring."""
        rest = devices - 1
        share = {"all-gather": rest / devices, "all-reduce": 2 * rest / devices}
        share["reduce-scatter"] = float(rest)
        return self.bytes * share.get(self.kind, 1.0)


def collectives(text: str) -> tuple[Collectives, ...]:
    """Returns the collectives of an HLO module; those in loops count as often as these turn."""
    bodies = _computations(text)
    times = _executions(bodies)
    counts, sizes = Counter[str](), Counter[str]()
    for name, lines in bodies.items():
        for line in lines:
            found = _START.search(line)
            if found:
                counts[found[2]] += times[name]
                sizes[found[2]] += times[name] * _size(found[1], found[2], bool(found[3]))
    return tuple(Collectives(kind, counts[kind], sizes[kind]) for kind in KINDS if counts[kind])


def _size(shape: str, kind: str, starts: bool) -> int:
    """Returns the bytes of a result; where an operation starts, its operand stands before it."""
    arrays = [
        math.prod(int(n) for n in dims.split(",") if n) * HLO_BITS.get(name, _digits(name)) // 8
        for name, dims in _ARRAY.findall(shape)
    ]
    if starts and kind == "collective-permute":
        return arrays[1]  # Operand, result, and two numbers of its own.
    if starts and kind in ("all-gather", "reduce-scatter"):
        return sum(arrays[len(arrays) // 2 :])
    return sum(arrays)


def _digits(name: str) -> int:
    """Returns the bits of an integer type, as in s32 and u8; 0 for a token."""
    return int(re.sub(r"\D", "", name) or 0)


def _computations(text: str) -> dict[str, list[str]]:
    """Returns the lines of each computation by its name; the entry's name is empty."""
    found: dict[str, list[str]] = {}
    name = None
    for line in text.splitlines():
        head = _HEAD.match(line)
        if head:
            name = "" if line.startswith("ENTRY") else head[1]
            found[name] = []
        elif name is not None:
            found[name].append(line)
    return found


def _executions(bodies: dict[str, list[str]]) -> Counter[str]:
    """Returns how often each computation is run; a loop of unknown length counts as one turn."""
    times = Counter[str]()

    def run(name: str, count: int) -> None:
        times[name] += count
        for line in bodies.get(name, ()):
            loop = _WHILE.search(line)
            if loop:
                run(loop[2], count * _trips(line, bodies.get(loop[1], [])))
            for called in _called(line):
                if called in bodies:
                    run(called, count)

    run("", 1)
    return times


def _called(line: str) -> list[str]:
    """Returns the computations that a line runs besides loops, with all branches of a choice."""
    branches = [name.strip(" %") for found in _BRANCHES.findall(line) for name in found.split(",")]
    return _CALLS.findall(line) + branches


def _trips(loop: str, condition: list[str]) -> int:
    """Returns how often a loop turns: as XLA noted, or up to its condition's one constant."""
    noted = _TRIPS.search(loop)
    limits = {int(n) for line in condition for n in _LIMIT.findall(line)}
    return int(noted[1]) if noted else max(limits) if len(limits) == 1 else 1
