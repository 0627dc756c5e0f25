"""Where our network and torch's first differ, module by module.

Outputs are compared in the one order of axes that a module's name says (`orders.py`). If they
differ there and agree in another, the line names it: right numbers, at the wrong places.
"""

import dataclasses
import re
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
from jaxtyping import Array, Float, Shaped

from o3d_jax.errors import InputError
from o3d_jax.weights.pytorch.dump import Dump, Record
from o3d_jax.weights.pytorch.names import torch_name
from o3d_jax.weights.pytorch.orders import OTHER_ORDERS, canonical, flat_in_order, torch_order
from o3d_jax.weights.pytorch.replay import Replay

TOLERANCE = 1e-4  # Ten times and more the rounding of a deep network in float32.


@dataclasses.dataclass(frozen=True)
class ComparedModule:
    """One module's outputs, compared."""

    record: Record
    largest: float
    """The largest absolute difference."""
    relative: float
    """L2 norm of the difference by that of torch's output; infinite if either is not finite."""
    order: str = ""
    """The order of torch's axes, as in weights/pytorch/orders.py."""
    agrees_as: str | None = None
    """Another order in which they agree, where they don't in this one."""


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that a dump and a network of ours have in common, and the rest."""

    rows: Sequence[ComparedModule]
    unlike: Sequence[str]
    """Modules that are in both but return something else, with both shapes."""
    only_torch: Sequence[str]
    only_ours: Sequence[str]


def compare(run: Replay, dump: Dump, tolerance: float = TOLERANCE) -> Comparison:
    """Runs ours, compares every module's output with the dump's, and returns the comparison.

    It is in torch's order. Up to a relative error of `tolerance`, other orders of axes are said to
    agree.

    Raises:
        InputError: no module is in both, or the dump is damaged.
    """
    # A module may be called several times; its nth call here is compared with its nth there.
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for i, record in enumerate(dump.records):
        waiting[record.name].append(i)

    rows: dict[int, ComparedModule] = {}
    unlike: dict[int, str] = {}
    only_ours: list[str] = []

    def observe(path: tuple[str, ...], output: Shaped[Array, "..."]) -> None:
        name = module_name(path)
        if not waiting[name]:
            only_ours.append(name)
            return
        i = waiting[name].popleft()
        record = dump.records[i]
        row = compare_output(np.asarray(output, np.float32), record, run, tolerance)
        if row is None:
            unlike[i] = f"{name or '(output)'} {record.shape} there, {output.shape} here"
        else:
            rows[i] = row

    run.run(observe)
    if not rows:
        raise InputError(f"no module in {dump.folder} is one of our {dump.network}")
    return Comparison(
        rows=[rows[i] for i in sorted(rows)],
        unlike=[unlike[i] for i in sorted(unlike)],
        only_torch=[dump.records[i].name for i in sorted(chain(*waiting.values()))],
        only_ours=only_ours,
    )


def module_name(path: tuple[str, ...]) -> str:
    """Returns the torch name of the module at a flax path."""
    return torch_name((*path, "bias")).removesuffix("bias").removesuffix(".")


def compare_output(
    ours: Float[np.ndarray, "..."], record: Record, run: Replay, tolerance: float = TOLERANCE
) -> ComparedModule | None:
    """Returns the errors in the order of axes of torch's module; None if the sizes differ."""
    places = canonical(ours, record.name, run.videos, run.frames)

    def compare_as(order: str) -> ComparedModule | None:
        flat = flat_in_order(places, order, record.shape, run.videos, run.frames)
        return None if flat is None else errors(flat, record, order)

    row = compare_as(torch_order(record.name, run.temporal_context))
    if row is None or row.relative <= tolerance:
        return row
    for order in OTHER_ORDERS:
        other = compare_as(order)
        if other is not None and other.relative <= tolerance:
            return dataclasses.replace(row, agrees_as=order)
    return row


def errors(ours: Float[np.ndarray, " n"], record: Record, order: str) -> ComparedModule:
    """Returns what two flat outputs differ by, where torch's is kept."""
    theirs = record.values().astype(np.float64)
    error = ours[:: record.stride] - theirs
    relative = float(np.linalg.norm(error)) / (float(np.linalg.norm(theirs)) or 1.0)
    largest = float(np.abs(error).max(initial=0.0))
    if not np.isfinite(relative):
        relative = largest = float("inf")
    return ComparedModule(record, largest, relative, order)


def comparison_lines(comparison: Comparison, tolerance: float) -> Iterator[str]:
    """Yields the lines to print; the last is the verdict."""
    first = first_difference(comparison, tolerance)
    for i, row in enumerate(comparison.rows):
        mark = "" if row.relative <= tolerance else "  DIFFERS" + (", FIRST" if i == first else "")
        if mark and row.agrees_as is not None:
            mark += f", other order: they agree as [{row.agrees_as}], and not as [{row.order}]"
        yield (
            f"{row.record.name or '(output)':72} {'x'.join(map(str, row.record.shape)):>18}"
            f"  max abs {row.largest:8.1e}  rel L2 {row.relative:8.1e}{mark}"
        )
    for line in comparison.unlike:
        yield f"not compared, as they return something else: {line}"
    for side, names in (("torch", comparison.only_torch), ("ours", comparison.only_ours)):
        for pattern, times in Counter(re.sub(r"\d+", "#", name) for name in names).items():
            yield f"only in {side}: {pattern or '(output)'}{f', {times} times' * (times > 1)}"
    yield verdict(comparison, tolerance)


def verdict(comparison: Comparison, tolerance: float) -> str:
    """Returns whether all that was compared agrees, or what differs first, and how many others."""
    first = first_difference(comparison, tolerance)
    before = comparison.rows[:first]
    most = max((row.relative for row in before), default=0.0)
    if first is None:
        unlike = f", {len(comparison.unlike)} not compared" * bool(comparison.unlike)
        return f"all {len(before)} modules agree{unlike}; largest relative error {most:.1e}"
    row = comparison.rows[first]
    differ = [row for row in comparison.rows if row.relative > tolerance]
    moved = sum(row.agrees_as is not None for row in differ)
    return (
        f"first difference: {row.record.name or '(output)'}, relative error {row.relative:.1e};"
        f" the {len(before)} modules before it agree to {most:.1e}; {len(differ)} differ in all"
        + f", {moved} of them in the order of axes only"
        * bool(moved)
    )


def first_difference(comparison: Comparison, tolerance: float) -> int | None:
    """Returns the number of the first row above the tolerance."""
    errors = (row.relative for row in comparison.rows)
    return next((i for i, error in enumerate(errors) if error > tolerance), None)
