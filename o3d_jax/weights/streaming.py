"""Models written and read array by array: a whole one need not fit into memory."""

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Shaped

from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import Weights, model_folder, named_parts, whole_config
from o3d_jax.weights.storage import kept_dtype

Value = TypeVar("Value")

Keys = tuple[str, ...]
"""The place of an array in a checkpoint: network, "params", then its flax path."""

GROUP_BYTES = 2**28
"""Bytes of arrays that are read or written at once: singly each would take a tenth of a second."""


@dataclass(frozen=True)
class Leaf:
    """An array that is made when it is written."""

    shape: tuple[int, ...]
    dtype: np.dtype
    read: Callable[[], Shaped[np.ndarray, "..."]]


class _InTurn(ocp.type_handlers.NumpyHandler):
    """Makes and writes leaves group by group; orbax's own handler wants all, and copies them."""

    async def serialize(self, values: Any, infos: Any, args: Any = None) -> Sequence[Any]:
        requests = list(zip(values, infos, args, strict=True))
        for group in grouped(requests, lambda request: _nbytes(request[0])):
            leaves, places, options = zip(*group, strict=True)
            arrays = [np.ascontiguousarray(leaf.read()) for leaf in leaves]  # Fast to compress.
            for written in await super().serialize(arrays, places, options):
                written.result()
        return []


def grouped(values: Sequence[Value], nbytes: Callable[[Value], int]) -> Iterator[list[Value]]:
    """Yields the values in order, in lists of at most `GROUP_BYTES`, or of a single larger one."""
    group: list[Value] = []
    used = 0
    for value in values:
        if group and used + nbytes(value) > GROUP_BYTES:
            yield group
            group, used = [], 0
        group.append(value)
        used += nbytes(value)
    if group:
        yield group


def _nbytes(array: Any) -> int:
    return math.prod(array.shape) * array.dtype.itemsize


def save_streamed(
    folder: Path, config: Config, weights: Weights, finish: Callable[[], str]
) -> None:
    """Writes a model whose arrays are each a `Leaf`, whole or not at all, as `save_model` does.

    `finish` is called when all arrays have been read, and what it returns is written into
    report.txt; if it raises, no folder appears.
    """
    in_turn = _InTurn()
    registry = ocp.type_handlers.create_type_handler_registry((Leaf, in_turn))
    handler = ocp.PyTreeCheckpointHandler(type_handler_registry=registry)
    with model_folder(folder, config) as arrays, ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(arrays, args=ocp.args.PyTreeSave(named_parts(weights)))
        (arrays.parent / "report.txt").write_text(finish())


@dataclass(frozen=True)
class StoredModel:
    """A checkpoint whose arrays stay on disk."""

    folder: Path
    config: Config
    leaves: dict[Keys, jax.ShapeDtypeStruct]

    def arrays(self, wanted: Sequence[Keys]) -> Iterator[Shaped[np.ndarray, "..."]]:
        """Yields these arrays in this order, as they are stored; a few are in memory at a time."""
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
            for group in grouped(wanted, lambda keys: _nbytes(self.leaves[keys])):
                flat = dict.fromkeys(self.leaves, ocp.PLACEHOLDER) | dict.fromkeys(group, 0)
                item = unflatten_dict(flat)
                as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
                what = ocp.args.PyTreeRestore(item=item, restore_args=as_numpy)
                tree = checkpointer.restore(self.folder / "weights", args=what)
                found: dict[Keys, Any] = flatten_dict(tree)
                del tree  # It would keep what is given away.
                for keys in group:
                    yield found.pop(keys)


def check_space(out: Path, nbytes: int) -> None:
    """Raises an InputError if so many bytes are not free where `out` is to be."""
    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < nbytes:
        raise InputError(
            f"{out} takes {nbytes / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; choose a place "
            "on another disk"
        )


def open_model(folder: Path) -> StoredModel:
    """Returns a model's config, and what arrays it has.

    Raises:
        InputError: no checkpoint there, or a damaged one.
    """
    folder = folder.absolute()
    config = whole_config(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        metadata: Any = checkpointer.metadata(folder / "weights").item_metadata
    stored: dict[Keys, Any] = flatten_dict(dict(metadata.tree))
    leaves = {keys: jax.ShapeDtypeStruct(m.shape, m.dtype) for keys, m in stored.items()}
    return StoredModel(folder=folder, config=config, leaves=leaves)


def weights_to_sample(stored: StoredModel, on_host: bool) -> Weights:
    """Returns the parameters that sampling reads, each in the type that it is used in.

    They come to the default device one by one, so that the host holds few of them at a time; or
    all stay on the host, and those that are stored in fewer bits stay so: that takes less memory,
    and a little time at each level. LPIPS, which only training reads, stays on disk.
    """
    wanted = [keys for keys in stored.leaves if keys[0] != "frozen_lpips"]
    stay = on_host and jax.default_backend() != "cpu"  # A CPU computes in the host's memory.
    flat: dict[Keys, Any] = {}
    for keys, array in zip(wanted, stored.arrays(wanted), strict=True):
        least = array.dtype if on_host else np.float32
        dtype = kept_dtype(keys, array.shape, least, stored.config.model.dtype)
        kept = array.astype(dtype, copy=False)
        flat[keys] = kept if stay else jax.device_put(kept)

    found = unflatten_dict(flat)
    return Weights(
        params=Params(unet=found["unet"], lgm=found["lgm"], clip=found.get("clip")),
        frozen=Frozen(vae=found["frozen_vae"], clip=found.get("frozen_clip")),
    )
