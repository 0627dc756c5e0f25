"""Writes the networks of a checkpoint under their torch names."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from jaxtyping import Shaped
from tqdm import tqdm

from o3d_jax.errors import InputError
from o3d_jax.files.atomic import whole_folder
from o3d_jax.weights.pytorch.names import to_torch, torch_name, torch_shape
from o3d_jax.weights.pytorch.rules import Progress, Tally, check_all_finite
from o3d_jax.weights.pytorch.safetensors import (
    FLOATS,
    Spec,
    all_file_names,
    in_file_order,
    write_network,
)
from o3d_jax.weights.streaming import Keys, StoredModel, check_space, open_model


@dataclass(frozen=True)
class Export:
    """What to write."""

    checkpoint: tyro.conf.Positional[Path]
    """A model of ours."""
    out: tyro.conf.Positional[Path]
    """Folder to write."""
    dtype: Literal["float32", "float16", "bfloat16"] | None = None
    """Type to cast to; if not given, each tensor keeps the type that it is stored in."""


PLACES = {
    "unet": ("unet", "mv_model_unet"),
    "lgm": ("lgm", "recon_model"),
    "clip": ("clip", "image_encoder/model"),
    "frozen_clip": ("clip", "image_encoder/model"),
    "frozen_vae": ("vae", "vae/diffusion_pytorch_model"),
}
"""The networks of a checkpoint: each one's config in ModelConfig, and its file."""


@dataclass(frozen=True)
class ExportedNetwork:
    """A network to export: its tensors in the order of the file, and where they are."""

    name: str
    stem: Path
    keys: dict[str, Keys]
    specs: list[Spec]


def networks_of(model: StoredModel, dtype: str | None) -> list[ExportedNetwork]:
    """Returns the networks of a checkpoint that have torch originals."""
    networks = []
    for part, (name, stem) in PLACES.items():
        keys = {torch_name(keys[2:]): keys for keys in model.leaves if keys[0] == part}
        specs = [
            Spec(
                name=tensor,
                dtype=dtype or str(model.leaves[at].dtype),
                shape=torch_shape(at[2:], model.leaves[at].shape),
            )
            for tensor, at in keys.items()
        ]
        if keys:
            networks.append(ExportedNetwork(name, Path(stem), keys, in_file_order(specs)))
    return networks


def export(order: Export) -> str:
    """Writes the folder, and returns what is in it.

    Raises:
        InputError: no checkpoint there, or one with none of these networks; values too large for
            the type asked for; a folder that holds more than an earlier export of these networks;
            a full disk.
    """
    model = open_model(order.checkpoint)
    networks = networks_of(model, order.dtype)
    if not networks:
        raise InputError(f"{order.checkpoint} has no network that torch knows; give another")

    # An earlier export may have had another number of shards, so all are named.
    names = [
        (network.stem.parent / file).as_posix()
        for network in networks
        for file in all_file_names(network.stem.name)
    ]
    total = sum(spec.nbytes for network in networks for spec in network.specs)
    check_space(order.out, total)

    tallies = []
    with (
        whole_folder(order.out.absolute(), names) as scratch,
        tqdm(total=total, unit="B", unit_scale=True, desc="export") as bar,
    ):
        for network in networks:
            tallies.append(_write(model, network, scratch, bar.update))
        check_all_finite(tallies)

    lines = [tally.report() for tally in tallies]
    if rest := sorted({keys[0] for keys in model.leaves} - PLACES.keys()):
        lines.append(f"not exported: {', '.join(rest)}\n")
    return "".join([*lines, f"wrote {order.out}\n"])


def _write(model: StoredModel, network: ExportedNetwork, folder: Path, progress: Progress) -> Tally:
    tally = Tally(network.name, None)
    target = folder / network.stem
    target.parent.mkdir(exist_ok=True)
    arrays = _arrays(model, network, tally, progress)
    notes = dataclasses.asdict(getattr(model.config.model, network.name))
    write_network(target.parent, target.name, network.specs, arrays, notes)
    return tally


def _arrays(
    model: StoredModel, network: ExportedNetwork, tally: Tally, progress: Progress
) -> Iterator[Shaped[np.ndarray, "..."]]:
    wanted = [network.keys[spec.name] for spec in network.specs]
    for spec, stored in zip(network.specs, model.arrays(wanted), strict=True):
        array = to_torch(network.keys[spec.name][2:], stored)
        if array.dtype != FLOATS[spec.dtype]:
            with np.errstate(over="ignore"):  # The tally names what became infinite.
                array = array.astype(FLOATS[spec.dtype])
            tally.casts += 1
        tally.see(spec, array)
        progress(array.nbytes)
        yield array
