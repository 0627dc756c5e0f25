"""Models on disk: a folder with `config.json` beside orbax arrays. Nothing is ever unpickled.

A model is what samples: config, averaged parameters and frozen networks; the bundled default model
is one. What a training run resumes from is in `run/checkpoints.py`.
"""

import contextlib
import dataclasses
import difflib
import hashlib
import json
import shutil
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError
from o3d_jax.files.atomic import check_ours, whole_folder
from o3d_jax.files.full_disk import full_disk_named, threads_quiet_about_full_disk
from o3d_jax.types import Frozen, Params, pytree

Tree = TypeVar("Tree")

BUNDLED = Path(__file__).parents[1] / "assets"
"""Models shipped with the package, by name."""


@pytree
class Weights:
    """All parameters of a model; a network that is None is not in the checkpoint."""

    params: Params
    frozen: Frozen


@dataclasses.dataclass(frozen=True)
class Model:
    """A model read from a checkpoint."""

    config: Config
    weights: Weights


def config_from_dict(values: Any, kind: type = Config, where: str = "config") -> Any:
    """Returns the config that `to_dict` made these plain values of.

    Raises:
        InputError: an unknown field (names the nearest known one), a value that is no choice, or a
            contradiction.
    """
    if not isinstance(values, dict):
        raise InputError(f"{where} {values!r} must be a group of fields")
    hints = typing.get_type_hints(kind)
    known = [f.name for f in dataclasses.fields(kind)]
    made = {}
    for name, value in values.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.0)[0]
            raise InputError(f"{where} has no field {name!r}; the nearest is {near!r}")
        made[name] = _from_plain(value, hints[name], f"{where}.{name}")
    try:
        return kind(**made)
    except (TypeError, ValueError) as error:
        raise InputError(f"{where}: {error}") from error


def _from_plain(value: Any, hint: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return config_from_dict(value, typing.cast(type, hint), where)
    if typing.get_origin(hint) is typing.Literal and value not in typing.get_args(hint):
        raise InputError(f"{where} {value!r} is none of {', '.join(map(str, hint.__args__))}")
    if not _is_a(value, hint):
        raise InputError(f"{where} {value!r} is no {getattr(hint, '__name__', hint)}")
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return tuple(value) if isinstance(value, list) else value


def _is_a(value: Any, hint: Any) -> bool:
    """Whether a plain value is of a type; a list stands for a tuple, a string for a path."""
    inside = typing.get_args(hint)
    if typing.get_origin(hint) is typing.Literal:
        return value in inside
    if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
        return any(_is_a(value, each) for each in inside)
    if typing.get_origin(hint) is tuple:
        each = inside[:1] * len(value) if inside[-1] is ... and isinstance(value, list) else inside
        is_list = isinstance(value, list) and len(value) == len(each)
        return is_list and all(map(_is_a, value, each))
    if isinstance(value, bool) or hint is bool:
        return isinstance(value, bool) and hint is bool
    return isinstance(value, {float: int | float, Path: str}.get(hint, hint))


def _read_config(folder: Path) -> Config:
    path = folder / "config.json"
    if not path.is_file():
        raise InputError(f"{folder} is not a checkpoint: it has no config.json")
    try:
        values = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # No JSON, no text, or too deep.
        raise InputError(f"{path} is damaged: {error}; restore it from a copy") from error
    return config_from_dict(values, where=str(path))


MODEL_FILES = ("config.json", "checksum", "report.txt")
"""The files in a model's folder beside `weights`; the report says what it was converted from."""


def save_model(folder: Path, config: Config, weights: Weights, dtype: str | None = None) -> None:
    """Writes a model, whole or not at all; `dtype` ("bfloat16") makes it smaller.

    With several processes all must call it; the first writes, and all wait until it has.
    """
    host = on_first_host(weights, dtype)
    try:
        if jax.process_index() == 0:
            _remove_leftovers(folder.absolute())
            with model_folder(folder, config) as arrays, _checkpointer_of_one() as checkpointer:
                checkpointer.save(arrays, named_parts(host))
    finally:  # The others must not wait for a process that could not write.
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"{folder.name} is written")


def _remove_leftovers(folder: Path) -> None:
    """Removes what killed processes left of this model, and nothing else."""
    names = (*MODEL_FILES, "weights/*", "weights.orbax-checkpoint-tmp/*")
    for scratch in folder.parent.glob(f".{folder.name}-????????"):
        # An older model may be in there, moved aside: it is not of these names.
        with contextlib.suppress(InputError):
            check_ours(scratch, names)
            shutil.rmtree(scratch)


def on_first_host(tree: Tree, dtype: str | None = None) -> Tree:
    """Returns whole arrays in numpy on process 0; on the others nothing is kept, leaves are None.

    With several processes all must call it. Arrays are gathered one by one, so that no device
    holds more than one of them beside its own share.
    """
    is_first = jax.process_index() == 0

    def fetch(array: jax.Array | np.ndarray) -> np.ndarray | None:
        if isinstance(array, jax.Array) and not (
            array.is_fully_addressable or array.is_fully_replicated
        ):
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.asarray(array, dtype or array.dtype) if is_first else None

    return jax.tree.map(fetch, tree)


def _checkpointer_of_one() -> ocp.StandardCheckpointer:
    """Returns a checkpointer for process 0 alone: by default all processes wait for each other."""
    if jax.process_count() == 1:
        return ocp.StandardCheckpointer()
    options = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="model"
    )
    return ocp.StandardCheckpointer(multiprocessing_options=options)


@contextlib.contextmanager
def model_folder(folder: Path, config: Config) -> Iterator[Path]:
    """Yields where a model's arrays are to go; `folder` appears, whole, when the block ends."""
    folder = folder.absolute()
    whole = all((folder / name).is_file() for name in ("config.json", "checksum"))
    # Only orbax knows the names below; they are ours where a model of ours was.
    names = (*MODEL_FILES, "weights/*") if whole else MODEL_FILES
    with whole_folder(folder, names) as scratch:
        (scratch / "config.json").write_text(json.dumps(to_dict(config), indent=1))
        arrays = scratch / "weights"
        with full_disk_named(folder), threads_quiet_about_full_disk():
            yield arrays
        # Orbax notes there where it wrote, which is not where the folder will be.
        (arrays / "commit_success.txt").unlink(missing_ok=True)
        (scratch / "checksum").write_text(_checksum(arrays))


def _checksum(folder: Path) -> str:
    """Returns a digest of the names and contents of all files."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            while block := file.read(2**24):
                digest.update(block)
    return digest.hexdigest()


def named_parts(weights: Weights) -> dict[str, Any]:
    """Returns the networks that are there, by their names in a checkpoint."""
    parts = {
        "unet": weights.params.unet,
        "lgm": weights.params.lgm,
        "clip": weights.params.clip,
        "frozen_vae": weights.frozen.vae,
        "frozen_clip": weights.frozen.clip,
        "frozen_lpips": weights.frozen.lpips,
    }
    return {name: part for name, part in parts.items() if part is not None}


def load_model(folder: Path) -> Model:
    """Reads a model, in float32.

    Raises:
        InputError: no checkpoint there, or a damaged one.
    """
    folder = folder.absolute()
    config = whole_config(folder)
    # Arrays come as they were written, in numpy: with shapes to restore into, as the standard
    # checkpointer has it, small models take four times as long.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        found = checkpointer.restore(folder / "weights", args=ocp.args.PyTreeRestore())
    found = jax.tree.map(lambda a: np.asarray(a, np.float32), found)
    params = Params(unet=found.get("unet"), lgm=found.get("lgm"), clip=found.get("clip"))
    frozen = Frozen(
        vae=found.get("frozen_vae"),
        clip=found.get("frozen_clip"),
        lpips=found.get("frozen_lpips"),
    )
    return Model(config=config, weights=Weights(params=params, frozen=frozen))


def whole_config(folder: Path) -> Config:
    """Returns the config of a model whose arrays are there as they were written.

    Raises:
        InputError: no checkpoint there, or a damaged one.
    """
    if not folder.is_dir():
        raise InputError(f"no checkpoint at {folder}; give a folder written by train.py")
    if not (folder / "weights").is_dir():
        raise InputError(
            f"{folder} holds no model: it has no folder 'weights' (a run's is in RUN/model)"
        )
    config = _read_config(folder)
    checksum = folder / "checksum"
    if not checksum.is_file() or checksum.read_text() != _checksum(folder / "weights"):
        raise InputError(f"{folder} is damaged or not whole; restore it from a copy")
    return config


def check_fits(found: Any, wanted: Any, what: str) -> None:
    """Compares the shapes of a tree of arrays with those that a config asks for.

    Raises:
        InputError: a missing, superfluous or misshapen parameter; the first three are named.
    """

    def shapes(tree):
        flat = jax.tree_util.tree_flatten_with_path(tree)[0]
        return {jax.tree_util.keystr(path): tuple(a.shape) for path, a in flat}

    have, want = shapes(found), shapes(wanted)
    wrong = [
        f"{name}: {have.get(name, 'missing')} instead of {want.get(name, 'nothing')}"
        for name in sorted(have.keys() | want.keys())
        if have.get(name) != want.get(name)
    ]
    if wrong:
        raise InputError(
            f"{what} is of another config: {len(wrong)} parameters differ, {'; '.join(wrong[:3])}"
        )
