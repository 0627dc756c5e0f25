"""Makes a checkpoint from torch weights: SVD's and LGM's to train from, the release's to sample.

What the files don't know starts fresh, from the config's seed: feedback encoders, ray embeddings,
LGM's time embedding. Values keep their type, so that an export gives the same bits.
"""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from tqdm import tqdm

from o3d_jax.cli import read_config
from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.places import CONFIGS
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import Weights
from o3d_jax.weights.pytorch.fields import NETWORKS, NetworkName, field_faults
from o3d_jax.weights.pytorch.lpips import lins_rule, lpips_shapes, trunk_rule
from o3d_jax.weights.pytorch.names import manifest
from o3d_jax.weights.pytorch.prefixes import without_prefix
from o3d_jax.weights.pytorch.rules import (
    IMAGE_ENCODER,
    LGM,
    RELEASED,
    SVD_UNET,
    Progress,
    Rule,
    Tally,
    check_all_finite,
    faults,
    fresh_parameters,
    network_shapes,
    plan_network,
    prefix_fault,
    read_fields,
    read_file,
    read_released,
)
from o3d_jax.weights.pytorch.safetensors import FLOATS, Source, read_network
from o3d_jax.weights.streaming import Leaf, check_space, save_streamed

Rotation = Literal["per_gaussian", "over_gaussians"]
Variant = Literal["fp32", "fp16"]


@dataclass(frozen=True)
class FromSvd:
    """SVD's weights, to train from."""

    folder: tyro.conf.Positional[Path]
    """SVD as diffusers lays it out: unet/, vae/, image_encoder/."""
    out: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    lgm: Path | None = None
    """LGM's weights, to go into the same checkpoint."""
    rotation: Rotation | None = None
    """How LGM's rotations are normalized: per_gaussian where the file is called "fixrot"."""
    lpips: tuple[Path, Path] | None = None
    """To train with the perceptual loss: torchvision's network, and LPIPS's weights of channels."""
    variant: Variant | None = None
    """Which of SVD's files to read, where it has both; fp32 if not given."""
    strip_prefix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What torch's wrappers put before all names of a file: module., _orig_mod., model., ema."""
    config: Path = CONFIGS / "ouroboros3d.py"
    """Says which architecture the weights must have; goes beside them."""


@dataclass(frozen=True)
class FromLgm:
    """LGM's weights alone."""

    file: tyro.conf.Positional[Path]
    """LGM's file, for example model_fp16_fixrot.safetensors."""
    out: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    rotation: Rotation | None = None
    """How its rotations are normalized: per_gaussian where the file is called "fixrot"."""
    strip_prefix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What torch's wrappers put before all names of a file: module., _orig_mod., model., ema."""
    config: Path = CONFIGS / "ouroboros3d.py"
    """Says which architecture the weights must have; goes beside them."""


@dataclass(frozen=True)
class FromRelease:
    """The weights of the PyTorch release, to sample with or to train on."""

    folder: tyro.conf.Positional[Path]
    """Where mv_model_unet and recon_model are, as .pth or .safetensors."""
    out: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    svd: Path | None = None
    """SVD's folder, for its VAE and image encoder; without them nothing can be sampled."""
    lpips: tuple[Path, Path] | None = None
    """To train with the perceptual loss: torchvision's network, and LPIPS's weights of channels."""
    variant: Variant | None = None
    """Which of SVD's files to read, where it has both; fp32 if not given."""
    strip_prefix: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """What torch's wrappers put before all names of a file: module., _orig_mod., model., ema."""
    config: Path = CONFIGS / "released.py"
    """Says which architecture the weights must have; goes beside them."""


ORDERS = {"svd": FromSvd, "lgm": FromLgm, "released": FromRelease}


@dataclass(frozen=True)
class NetworkFile:
    """One file, or set of shards, and the network that it fills, or a part of that."""

    network: NetworkName
    rule: Rule
    source: Source
    folder: Path | None = None
    """Where diffusers keeps the network, with a config.json beside its tensors."""


@dataclass(frozen=True)
class Conversion:
    """A checkpoint in the making."""

    config: Config
    jobs: list[NetworkFile]
    """The files; those of one network have its parameters between them."""


def read_order(order: FromSvd | FromLgm | FromRelease) -> Conversion:
    """Returns what there is to convert, with all headers read.

    Raises:
        InputError: files that are missing or damaged; a rotation variant that is unknown, asked
            for in vain, or not the config's; a prefix that no file has.
    """
    conversion = _named_as_stored(order)
    sources = [job.source for job in conversion.jobs]
    for prefix in order.strip_prefix:
        sources = without_prefix(sources, prefix)
    jobs = [
        dataclasses.replace(job, source=source)
        for job, source in zip(conversion.jobs, sources, strict=True)
    ]
    return dataclasses.replace(conversion, jobs=jobs)


def _named_as_stored(order: FromSvd | FromLgm | FromRelease) -> Conversion:
    config = read_config(order.config, [])
    if isinstance(order, FromRelease):
        jobs = [
            NetworkFile("unet", RELEASED, read_released(order.folder, "mv_model_unet")),
            NetworkFile("lgm", RELEASED, read_released(order.folder, "recon_model")),
        ]
        frozen = _frozen_jobs(order.svd, order.variant) if order.svd else []
        return Conversion(config, [*jobs, *frozen, *_lpips_jobs(order.lpips, config)])

    jobs = []
    if isinstance(order, FromSvd):
        folder = order.folder / "unet"
        unet = read_network(folder, "diffusion_pytorch_model", order.variant)
        jobs = [
            NetworkFile("unet", SVD_UNET, unet, folder),
            *_frozen_jobs(order.folder, order.variant),
        ]
        jobs += _lpips_jobs(order.lpips, config)

    # What LGM's rotations mean is not in its tensors: the config goes along with the file.
    file = order.lgm if isinstance(order, FromSvd) else order.file
    if file is not None:
        job = NetworkFile("lgm", LGM, read_file(file))
        jobs.append(job)
        config = _with_rotation(config, _rotation(job.source, order.rotation, config))
    elif order.rotation:
        raise InputError(f"--rotation {order.rotation} is about LGM's file; give it as --lgm FILE")

    return Conversion(config, jobs)


def _frozen_jobs(folder: Path, variant: Variant | None) -> list[NetworkFile]:
    vae, clip = folder / "vae", folder / "image_encoder"
    return [
        NetworkFile("vae", RELEASED, read_network(vae, "diffusion_pytorch_model", variant), vae),
        NetworkFile("clip", IMAGE_ENCODER, read_network(clip, "model", variant), clip),
    ]


def _lpips_jobs(files: tuple[Path, Path] | None, config: Config) -> list[NetworkFile]:
    if files is None:
        return []
    trunk, lins = files
    network = config.optim.lpips_network
    return [
        NetworkFile("lpips", trunk_rule(network), read_file(trunk)),
        NetworkFile("lpips", lins_rule(network), read_file(lins)),
    ]


def _rotation(source: Source, asked: Rotation | None, config: Config) -> Rotation:
    """Returns which variant a file of LGM is: nothing in its tensors tells."""
    noted = source.notes.get("rotation_norm")
    known = noted or ("per_gaussian" if "fixrot" in source.where.name else None)
    ours = config.model.lgm.rotation_norm
    if known and asked and known != asked:
        raise InputError(f"--rotation {asked}: {source.where.name} is {known}; leave it out")
    if not (known or asked):
        raise InputError(
            f"{source.where} does not say how its rotations are normalized; give --rotation "
            "over_gaussians for LGM's first weights, per_gaussian for its fixrot ones"
        )
    if not asked and known != ours:
        raise InputError(
            f"{source.where} is {known}, and rotation_norm is {ours} in the config; give "
            f"--rotation {known} to record the file's, or another --config"
        )
    return known or asked  # pyright: ignore[reportReturnType]


def _with_rotation(config: Config, rotation: Rotation) -> Config:
    lgm = dataclasses.replace(config.model.lgm, rotation_norm=rotation)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lgm=lgm))


def convert(order: FromSvd | FromLgm | FromRelease) -> str:
    """Writes the checkpoint, and returns what went into it, as its report.txt says it.

    Raises:
        InputError: as `read_order`; files of another network than the config's; tensors that are
            not finite; a full disk.
    """
    conversion = read_order(order)
    check(conversion)
    tensors = [t.spec for job in conversion.jobs for t in job.source.tensors]
    total = sum(spec.nbytes for spec in tensors if spec.dtype in FLOATS)
    check_space(order.out, total)
    with tqdm(total=total, unit="B", unit_scale=True, desc="convert") as bar:
        tallies, weights = planned_weights(conversion, bar.update)

        def finish() -> str:
            check_all_finite(tallies)
            return conversion_report(conversion, tallies)

        save_streamed(order.out, conversion.config, weights, finish)
    return f"{conversion_report(conversion, tallies)}wrote {order.out}\n"


def conversion_report(conversion: Conversion, tallies: list[Tally]) -> str:
    """Returns what was read and filled, what is not there, and what could not be verified."""
    there = {job.network for job in conversion.jobs}
    lines = [tally.report() for tally in tallies]
    if any(tally.fresh for tally in tallies):
        lines.append(f"fresh parameters are drawn with seed {conversion.config.seed}\n")
    if "lgm" in there:
        lines.append(f"rotation_norm {conversion.config.model.lgm.rotation_norm}\n")
    lines += [
        f"not verified: {job.folder} has no config.json, and no tensor shows all its fields\n"
        for job in conversion.jobs
        if job.folder and not (job.folder / "config.json").is_file()
    ]
    if absent := [name for name in NETWORKS if name not in there]:
        lines.append(f"not in the checkpoint: {', '.join(absent)}\n")
    return "".join(lines)


def check(conversion: Conversion) -> None:
    """Raises an InputError that names whatever keeps the files from being the config's networks."""
    shapes = [_shapes(conversion.config, job.network) for job in conversion.jobs]
    prefixed = [
        prefix_fault(job.rule, job.source, shape)
        for job, shape in zip(conversion.jobs, shapes, strict=True)
    ]
    if any(prefixed):
        raise InputError(", and ".join(filter(None, prefixed)))
    wrong = [fault for job in conversion.jobs for fault in _faults(conversion.config, job)]
    if wrong:
        raise InputError(
            "the files do not hold the networks of the config; give other files, or the files' "
            f"own config as --config: {', and '.join(wrong)}"
        )


def _faults(config: Config, job: NetworkFile) -> Iterator[str]:
    described = {job.source.where: job.source.notes}
    if job.folder:
        described[job.folder / "config.json"] = read_fields(job.folder / "config.json")
    for where, fields in described.items():
        if differences := field_faults(job.network, fields, config.model):
            yield f"{where}: {differences}"
    if tensors := faults(job.rule, job.source, _shapes(config, job.network)):
        yield tensors


def _shapes(config: Config, network: NetworkName) -> Any:
    if network == "lpips":
        return lpips_shapes(config.optim.lpips_network)
    return getattr(network_shapes(config.model), network)


def planned_weights(conversion: Conversion, progress: Progress) -> tuple[list[Tally], Weights]:
    """Returns the parameters, as leaves that are read when written, and a tally for each file."""
    config = conversion.config
    tallies = []
    leaves: dict[NetworkName, dict[str, Leaf]] = {}
    for job in conversion.jobs:
        tally = Tally(job.network, job.source.where)
        leaves.setdefault(job.network, {}).update(_leaves(config, job, tally, progress))
        tallies.append(tally)

    parts = {
        network: {"params": _tree(_shapes(config, network), named)}
        for network, named in leaves.items()
    }

    # The image tower lies where a training of this config looks for it.
    trains = config.train.train_image_encoder
    clip = parts.get("clip")
    weights = Weights(
        params=Params(unet=parts.get("unet"), lgm=parts.get("lgm"), clip=clip if trains else None),
        frozen=Frozen(
            vae=parts.get("vae"), clip=None if trains else clip, lpips=parts.get("lpips")
        ),
    )
    return tallies, weights


def _leaves(config: Config, job: NetworkFile, tally: Tally, progress: Progress) -> dict[str, Leaf]:
    """Returns the parameters that a file has and those that start fresh with it, by torch name."""
    shapes = _shapes(config, job.network)
    planned = plan_network(tally, job.rule, job.source, shapes, progress)
    leaves = {name: leaf for name, leaf in planned.items() if leaf is not None}
    if fresh := sorted(planned.keys() - leaves.keys()):
        drawn = fresh_parameters(config.model, job.network, fresh, config.seed)
        for name, array in drawn.items():
            host = np.asarray(array)
            leaves[name] = Leaf(host.shape, host.dtype, read=host.view)
    return leaves


def _tree(shapes: Any, leaves: dict[str, Leaf]) -> Any:
    ordered = [leaves[name] for name in manifest(shapes)]
    return jax.tree.unflatten(jax.tree.structure(shapes), ordered)
