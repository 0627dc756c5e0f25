"""Compares this package with golden files: `python tests/golden/check.py FILE.npz [...]`.

Two kinds of file. Those of the rasterizer tell themselves by their arrays. Others have `in.*` and
`out.*` arrays, and a FILE.json beside them with `kind`, `config`, `params` (the seed of each
model's weights, which are made from their names) and `noise_max_abs` (the original's own float32
noise).

Prints a line for every output: kind, name, largest absolute error, relative L2 error, what it is
held to and why, PASS or FAIL. Exits with 0 if all pass, 1 if one fails, 2 for a file it cannot
check.

A new kind is a function from a `Golden` to our outputs under the file's names, and an entry in
KINDS.
"""

import argparse
import json
import pathlib
import sys
import zipfile
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

sys.path[:0] = [str(pathlib.Path(__file__).parents[i]) for i in (0, 1, 2)]  # Runs from anywhere.

from formulas import (  # noqa: E402
    ccm_limits,
    check_ccm,
    check_cond,
    check_dataset,
    check_plucker,
    check_scheduler,
    cond_limits,
    plucker_limits,
    scheduler_limits,
)
from loops import check_loop, check_train_loss, train_loss_limits  # noqa: E402
from networks import (  # noqa: E402
    check_adapter,
    check_clip,
    check_lgm_gaussians,
    check_lgm_unet,
    check_mvmodel,
    check_unet,
    check_vae,
    clip_limits,
)
from rows import Arrays, Golden, Limit, Row, UnknownFileError  # noqa: E402
from splatting import SPLAT_ARRAYS, check_splat  # noqa: E402

KINDS: dict[str, Callable[[Golden], Mapping[str, Any]]] = {
    "adapter": check_adapter,
    "ccm": check_ccm,
    "clip": check_clip,
    "cond": check_cond,
    "dataset": check_dataset,
    "lgm_gaussians": check_lgm_gaussians,
    "lgm_unet": check_lgm_unet,
    "loop": check_loop,
    "mvmodel": check_mvmodel,
    "plucker": check_plucker,
    "scheduler": check_scheduler,
    "train_loss": check_train_loss,
    "unet": check_unet,
    "vae": check_vae,
}

LIMITS: dict[str, Callable[[Golden], Mapping[str, Limit]]] = {
    "ccm": ccm_limits,
    "clip": clip_limits,
    "cond": cond_limits,
    "plucker": plucker_limits,
    "scheduler": scheduler_limits,
    "train_loss": train_loss_limits,
}
"""Of the outputs whose limit is not the usual one, with its reason."""


def check(file: pathlib.Path) -> Iterable[Row]:
    """Rows of one file.

    Raises:
        UnknownFileError: the file cannot be read or its kind is not known.
    """
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays = dict(archive)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise UnknownFileError(f"cannot be read as .npz: {error}") from error
    if SPLAT_ARRAYS <= set(arrays):
        return check_splat(file, arrays)
    golden = Golden(file, arrays, _about(file, arrays))
    if golden.kind not in KINDS:
        raise UnknownFileError(f"unknown kind '{golden.kind}'; known: {', '.join(sorted(KINDS))}")
    try:
        limits = LIMITS[golden.kind](golden) if golden.kind in LIMITS else {}
        return list(golden.rows(KINDS[golden.kind](golden), limits))
    except KeyError as error:
        raise UnknownFileError(f"lacks {error}, which its kind, {golden.kind}, needs") from error


def _about(file: pathlib.Path, arrays: Arrays) -> Mapping[str, Any]:
    path = file.with_suffix(".json")
    if not path.is_file():
        kind = f"kind '{arrays['kind']}'" if "kind" in arrays else "kind"
        raise UnknownFileError(f"unknown {kind}: there is no {path.name} beside it that tells it")
    try:
        about = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UnknownFileError(f"{path.name} cannot be read: {error}") from error
    missing = {"kind", "config", "params", "noise_max_abs"} - set(about)
    if missing:
        raise UnknownFileError(f"{path.name} lacks {', '.join(sorted(missing))}")
    return about


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=pathlib.Path, metavar="FILE.npz")
    rows = []
    for file in parser.parse_args(arguments).files:
        try:
            for row in check(file):
                print(row, flush=True)
                rows.append(row)
        except UnknownFileError as error:
            print(f"{file}: {error}", file=sys.stderr)
            return 2
    failed = sum(not row.passed for row in rows)
    print(f"{len(rows) - failed} of {len(rows)} pass")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
