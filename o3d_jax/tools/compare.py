"""Where our network and torch's first differ: `python -m o3d_jax.tools.compare CHECKPOINT DUMP`.

DUMP is a folder that tools/dump_torch.py wrote beside the torch network; that file says how. Prints
a line for every module that both have, in torch's order of execution, then those that only one
has, then where the outputs first differ. Exit status 0: nowhere; 1: somewhere; 2: no comparison.

Options:
    --tolerance X   relative L2 error up to which outputs agree. The default is for a dump in
                    float32; one in TF32, as torch convolves on GPUs unless told otherwise, or in
                    float16 needs about 3e-2.
"""

import dataclasses
import re
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import Array, Float, Shaped

from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.io.checkpoint import load_model
from o3d_jax.io.dump import Dump, Record
from o3d_jax.io.names import torch_name
from o3d_jax.tools.cli import parse
from o3d_jax.tools.replay import Replay, replay

TOLERANCE = 1e-4  # Ten times and more the rounding of a deep network in float32.


@dataclasses.dataclass(frozen=True)
class Row:
    """One module's outputs, compared."""

    record: Record
    largest: float
    """Absolute difference."""
    relative: float
    """L2 norm of the difference by that of torch's output; infinite if one of both is not finite.
    """


@dataclasses.dataclass(frozen=True)
class Comparison:
    """All that a dump and a network of ours have in common, and the rest."""

    rows: Sequence[Row]
    unlike: Sequence[str]
    """Modules of both that return something else, with both shapes."""
    only_torch: Sequence[str]
    only_ours: Sequence[str]


def compare(run: Replay, dump: Dump) -> Comparison:
    """Runs ours and compares every module's output with the dump's, in torch's order.

    Raises:
        InputError: no module is in both, or the dump is damaged.
    """
    waiting: dict[str, deque[int]] = defaultdict(deque)
    for i, record in enumerate(dump.records):
        waiting[record.name].append(i)
    rows: dict[int, Row] = {}
    unlike: dict[int, str] = {}
    only_ours: list[str] = []

    def observe(path: tuple[str, ...], output: Shaped[Array, "..."]) -> None:
        name = module_name(path)
        if not waiting[name]:
            only_ours.append(name)
            return
        i = waiting[name].popleft()
        record = dump.records[i]
        row = closest(np.asarray(output, np.float32), record, run.videos, run.frames)
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
    """The torch name of the module at a flax path."""
    return torch_name((*path, "bias")).removesuffix("bias").removesuffix(".")


def closest(ours: Float[np.ndarray, "..."], record: Record, videos: int, frames: int) -> Row | None:
    """The errors in the order of axes in which both agree best; None if none has torch's size.

    Values that differ don't agree in any order, so this can hide no fault of a module.
    """
    theirs = record.values().astype(np.float64)
    norm = float(np.linalg.norm(theirs)) or 1.0
    best: Row | None = None
    for flat in orders(ours, int(np.prod(record.shape)), videos, frames):
        error = flat[:: record.stride] - theirs
        relative = float(np.linalg.norm(error)) / norm
        largest = float(np.abs(error).max(initial=0.0))
        if not np.isfinite(relative):
            relative = largest = float("inf")
        if best is None or relative < best.relative:
            best = Row(record, largest, relative)
        if relative <= TOLERANCE:
            break  # In another order of axes they would not agree.
    return best


def orders(
    ours: Float[np.ndarray, "..."], size: int, videos: int, frames: int
) -> Iterator[Float[np.ndarray, " {size}"]]:
    """Ours in every order of axes that torch may have it in, flat.

    Ours are `b v h w c`, and `(b h w) v c` in attention across frames; a context or an embedding
    has one row a video, or a frame, where torch repeats it. So do ours with those of views.
    """
    c = ours.shape[-1] if ours.ndim else 1
    if ours.size == size:
        yield ours.reshape(-1)
        if ours.ndim > 2:
            yield np.moveaxis(ours, -1, 1).reshape(-1)
        if size % (videos * frames * c) == 0:
            over_places = ours.reshape(videos, frames, -1, c)
            over_frames = ours.reshape(videos, -1, frames, c).swapaxes(1, 2)
            for x in (over_places, over_frames):
                for axes in ((0, 1, 3, 2), (0, 2, 1, 3), (0, 1, 2, 3)):
                    yield x.transpose(axes).reshape(-1)
    elif ours.size in (videos * c, frames * c) and size % ours.size == 0:
        times = size // ours.size
        yield np.repeat(ours.reshape(-1, 1, c), times, axis=1).reshape(-1)
        yield np.tile(ours.reshape(-1), times)
    elif ours.size == frames * size and ours.shape[0] % frames == 0:
        views = ours.reshape(-1, frames, *ours.shape[1:])
        if not np.ptp(views, axis=1).any():
            yield views[:, 0].reshape(-1)


def report(comparison: Comparison, tolerance: float) -> Iterator[str]:
    """The lines to print; the last is the verdict."""
    first = first_difference(comparison, tolerance)
    for i, row in enumerate(comparison.rows):
        mark = "" if row.relative <= tolerance else "  DIFFERS" + (", FIRST" if i == first else "")
        yield (
            f"{row.record.name or '(output)':72} {'x'.join(map(str, row.record.shape)):>18}"
            f"  max abs {row.largest:8.1e}  rel L2 {row.relative:8.1e}{mark}"
        )
    for line in comparison.unlike:
        yield f"not compared, as they return something else: {line}"
    for side, names in (("torch", comparison.only_torch), ("ours", comparison.only_ours)):
        for pattern, times in Counter(re.sub(r"\d+", "#", name) for name in names).items():
            yield f"only in {side}: {pattern or '(output)'}{f', {times} times' * (times > 1)}"
    before = comparison.rows if first is None else comparison.rows[:first]
    most = max((row.relative for row in before), default=0.0)
    if first is None:
        yield f"all {len(before)} modules agree; largest relative error {most:.1e}"
    else:
        row = comparison.rows[first]
        yield (
            f"first difference: {row.record.name or '(output)'}, relative error {row.relative:.1e};"
            f" the {len(before)} modules before it agree to {most:.1e}"
        )


def first_difference(comparison: Comparison, tolerance: float) -> int | None:
    """The number of the first row above the tolerance."""
    errors = (row.relative for row in comparison.rows)
    return next((i for i, error in enumerate(errors) if error > tolerance), None)


@dataclasses.dataclass(frozen=True)
class Arguments:
    """Compares a checkpoint with intermediate arrays of a torch network."""

    checkpoint: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """Folder with our model."""
    dump: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="DUMP")]
    """Folder that tools/dump_torch.py wrote."""
    tolerance: float = TOLERANCE
    """Relative L2 error up to which outputs agree."""


@exit_on_input_error()
def main() -> None:
    """Reads the command line, prints the comparison, and exits with its status."""
    arguments = parse(Arguments, sys.argv[1:], prog="python -m o3d_jax.tools.compare")
    if not arguments.tolerance > 0:
        raise InputError(f"--tolerance {arguments.tolerance}: give a positive number")
    dump = Dump(arguments.dump)
    comparison = compare(replay(load_model(arguments.checkpoint), dump), dump)
    for line in report(comparison, arguments.tolerance):
        sys.stdout.write(line + "\n")
    sys.exit(0 if first_difference(comparison, arguments.tolerance) is None else 1)


if __name__ == "__main__":
    main()
