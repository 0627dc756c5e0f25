"""Which operations of a program cost the most, counted in its jaxpr for one device of a platform.

Counted are matrix products, convolutions and kernels: each is taken to read its operands from
memory and to write its result, once. All else is taken to happen on the way, as compilers fuse it,
so that times are lower bounds. Attention's kernels keep the scores on the chip; where the platform
has none, the products of the chunks write and read them.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from jax.extend.core import Jaxpr, JaxprEqn

from o3d_jax.run.flops import count_product, count_program, programs_within

KERNELS = ("pallas_call", "dot_product_attention_fwd", "dot_product_attention_bwd")
"""Primitives whose insides stay on the chip."""


class Operation(NamedTuple):
    """All operations of one kind with operands of the same shapes."""

    kind: str
    """Name of the primitive, or "kernel" where the platform has one of its own."""
    shapes: str
    """Operands and result, as "bf16[8,64] f32[64,4] -> f32[8,4]"."""
    count: int
    flops: int
    """All their floating-point operations together."""
    bytes: int
    """Read and written by all of them together."""

    def seconds(self, flops_rate: float, memory_rate: float) -> float:
        """Returns the least time, by whichever of arithmetic and memory takes longer."""
        return max(self.flops / flops_rate, self.bytes / memory_rate)


def operations(program: Jaxpr, platform: str) -> list[Operation]:
    """Returns what is counted in a program, the same operations joined, for "cuda" or "tpu"."""
    joined: dict[tuple[str, str], Operation] = {}
    for each in _operations(program, 1, platform):
        name = (each.kind, each.shapes)
        if (before := joined.get(name)) is not None:
            sums = (a + b for a, b in zip(before[2:], each[2:], strict=True))
            each = Operation(*name, *sums)
        joined[name] = each
    return list(joined.values())


def most(found: Iterable[Operation], by: str, count: int = 3) -> list[Operation]:
    """Returns those with the most "flops" or "bytes", the most first."""
    return sorted(found, key=lambda each: getattr(each, by), reverse=True)[:count]


def _operations(program: Jaxpr, times: int, platform: str) -> Iterator[Operation]:
    """Yields the operations of a program that runs so many times."""
    for equation in program.eqns:
        name = equation.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            yield _operation(name, equation, times, count_product(equation))
        elif name in KERNELS:
            yield _operation(name, equation, times, 0)
        elif name == "cond":
            yield from _of_choice(equation, times, platform)
        else:
            turns = equation.params["length"] if name == "scan" else 1
            for inside in programs_within(equation.params):
                yield from _operations(inside, turns * times, platform)


def _of_choice(equation: JaxprEqn, times: int, platform: str) -> Iterator[Operation]:
    """Yields the operations of the branch that the platform takes; else of the largest."""
    branches = [branch.jaxpr for branch in equation.params["branches"]]
    platforms = equation.params.get("branches_platforms")
    if platforms is None:
        largest = max(branches, key=lambda branch: count_program(branch).total)
        yield from _operations(largest, times, platform)
        return

    taken = next(i for i, names in enumerate(platforms) if names is None or platform in names)
    if _has_kernel(branches[taken]):
        # What it computes is what the branch for all platforms spells out.
        flops = count_program(branches[platforms.index(None)]).total
        yield _operation("kernel", equation, times, flops)
    else:
        yield from _operations(branches[taken], times, platform)


def _has_kernel(program: Jaxpr) -> bool:
    return any(
        equation.primitive.name.removesuffix("_wrapper") in KERNELS
        or any(_has_kernel(inside) for inside in programs_within(equation.params))
        for equation in program.eqns
    )


def _operation(kind: str, equation: JaxprEqn, times: int, flops: int) -> Operation:
    avals: list[Any] = [v.aval for v in equation.invars]
    operands = [a for a in avals if a.ndim]  # Without the number of the branch.
    results: list[Any] = [v.aval for v in equation.outvars]
    nbytes = sum(math.prod(a.shape) * a.dtype.itemsize for a in (*operands, *results))
    shapes = f"{' '.join(map(_short, operands))} -> {' '.join(map(_short, results))}"
    return Operation(kind, shapes, times, times * flops, times * nbytes)


def _short(aval: Any) -> str:
    kind = {"float32": "f32", "bfloat16": "bf16"}.get(aval.dtype.name, aval.dtype.name)
    return f"{kind}[{','.join(map(str, aval.shape))}]"
