"""Makes a checkpoint from torch weights: `python -m o3d_jax.tools.convert svd|lgm|released`.

    svd SVD_DIR OUT [--lgm FILE]    to train from: SVD's U-Net, VAE and image encoder, and LGM
    lgm FILE OUT                    LGM alone
    released DIR OUT [--svd DIR]    to sample with: mv_model_unet.pth and recon_model.pth
    [--lpips TRUNK LIN]             with svd, released: for the perceptual loss

What the files don't know starts fresh, from the config's seed: feedback encoders, ray embeddings,
LGM's time embedding. Values keep their type, so that `o3d_jax.tools.export` gives the same bits.
`.pth` files need torch: pip install 'o3d-jax[convert]'.
"""

import dataclasses
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.io.checkpoint import Weights
from o3d_jax.io.convert import (
    IMAGE_ENCODER,
    LGM,
    RELEASED,
    SVD_UNET,
    Progress,
    Rule,
    Tally,
    check_all_finite,
    check_fields,
    faults,
    fresh_parameters,
    network_shapes,
    plan_network,
    read_fields,
    read_file,
    read_released,
)
from o3d_jax.io.lpips_files import LPIPS, lpips_shapes, read_lpips
from o3d_jax.io.safetensors import FLOATS, Source, read_network
from o3d_jax.io.streaming import Leaf, save_streamed
from o3d_jax.tools.cli import parse, read_config
from o3d_jax.types import Frozen, Params

CONFIGS = Path(__file__).parents[2] / "configs"
Rotation = Literal["per_gaussian", "over_gaussians"]
Variant = Literal["fp32", "fp16"]
Network = Literal["unet", "lgm", "vae", "clip", "lpips"]
NETWORKS: tuple[Network, ...] = ("unet", "lgm", "vae", "clip", "lpips")


@dataclass(frozen=True)
class Svd:
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
    """Which of SVD's files, where it has both; fp32 if not given."""
    config: Path = CONFIGS / "ouroboros3d.py"
    """Says which architecture the weights must have; goes beside them."""


@dataclass(frozen=True)
class Lgm:
    """LGM's weights alone."""

    file: tyro.conf.Positional[Path]
    """For example model_fp16_fixrot.safetensors."""
    out: tyro.conf.Positional[Path]
    """Checkpoint to write."""
    rotation: Rotation | None = None
    """How its rotations are normalized: per_gaussian where the file is called "fixrot"."""
    config: Path = CONFIGS / "ouroboros3d.py"
    """Says which architecture the weights must have; goes beside them."""


@dataclass(frozen=True)
class Released:
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
    """Which of SVD's files, where it has both; fp32 if not given."""
    config: Path = CONFIGS / "released.py"
    """Says which architecture the weights must have; goes beside them."""


ORDERS = {"svd": Svd, "lgm": Lgm, "released": Released}


@dataclass(frozen=True)
class Job:
    """One network to fill."""

    network: Network
    rule: Rule
    source: Source


@dataclass(frozen=True)
class Conversion:
    """A checkpoint in the making."""

    config: Config
    jobs: list[Job]


def read_order(order: Svd | Lgm | Released) -> Conversion:
    """What there is to convert; all headers have been read.

    Raises:
        InputError: files that are missing, damaged or of another network than the config's.
    """
    config = read_config(order.config, [])
    if isinstance(order, Released):
        jobs = [
            Job("unet", RELEASED, read_released(order.folder, "mv_model_unet")),
            Job("lgm", RELEASED, read_released(order.folder, "recon_model")),
        ]
        frozen = _frozen_jobs(order.svd, order.variant, config) if order.svd else []
        return Conversion(config, [*jobs, *frozen, *_lpips_jobs(order.lpips, config)])
    jobs = []
    if isinstance(order, Svd):
        _check_unet(order.folder, config)
        unet = read_network(order.folder / "unet", "diffusion_pytorch_model", order.variant)
        jobs = [Job("unet", SVD_UNET, unet), *_frozen_jobs(order.folder, order.variant, config)]
        jobs += _lpips_jobs(order.lpips, config)
    file = order.lgm if isinstance(order, Svd) else order.file
    if file is not None:
        job = Job("lgm", LGM, read_file(file))
        jobs.append(job)
        config = _with_rotation(config, _rotation(job.source, order.rotation))
    return Conversion(config, jobs)


def _check_unet(folder: Path, config: Config) -> None:
    path = folder / "unet" / "config.json"  # Knows the number of heads, which no tensor shows.
    check_fields(str(path), read_fields(path), config.model.unet)


def _frozen_jobs(folder: Path, variant: Variant | None, config: Config) -> list[Job]:
    vae, clip = folder / "vae", folder / "image_encoder"
    check_fields(str(vae / "config.json"), read_fields(vae / "config.json"), config.model.vae)
    check_fields(str(clip / "config.json"), read_fields(clip / "config.json"), config.model.clip)
    return [
        Job("vae", RELEASED, read_network(vae, "diffusion_pytorch_model", variant)),
        Job("clip", IMAGE_ENCODER, read_network(clip, "model", variant)),
    ]


def _lpips_jobs(files: tuple[Path, Path] | None, config: Config) -> list[Job]:
    if files is None:
        return []
    return [Job("lpips", LPIPS, read_lpips(config.optim.lpips_network, *files))]


def _rotation(source: Source, asked: Rotation | None) -> Rotation:
    """Which variant a file of LGM is: nothing in its tensors tells."""
    noted = source.notes.get("rotation_norm")
    known = noted or ("per_gaussian" if "fixrot" in source.where.name else None)
    if known and asked and known != asked:
        raise InputError(f"--rotation {asked}: {source.where.name} is {known}; leave it out")
    if not (known or asked):
        raise InputError(
            f"{source.where} does not say how its rotations are normalized; give --rotation "
            "over_gaussians for LGM's first weights, per_gaussian for its fixrot ones"
        )
    return known or asked  # pyright: ignore[reportReturnType]


def _with_rotation(config: Config, rotation: Rotation) -> Config:
    lgm = dataclasses.replace(config.model.lgm, rotation_norm=rotation)
    return dataclasses.replace(config, model=dataclasses.replace(config.model, lgm=lgm))


def convert(order: Svd | Lgm | Released) -> str:
    """Writes the checkpoint, and says what went into it.

    Raises:
        InputError: as `read_order`; tensors that are not finite; a full disk.
    """
    conversion = read_order(order)
    check(conversion)
    tensors = [t.spec for job in conversion.jobs for t in job.source.tensors]
    total = sum(spec.nbytes for spec in tensors if spec.dtype in FLOATS)
    _check_space(order.out, total)
    with tqdm(total=total, unit="B", unit_scale=True, desc="convert") as bar:
        tallies, weights = plan(conversion, bar.update)
        save_streamed(
            order.out, conversion.config, weights, check=lambda: check_all_finite(tallies)
        )
    absent = [name for name in NETWORKS if not _has(conversion, name)]
    lines = [tally.report() for tally in tallies]
    if any(tally.fresh for tally in tallies):
        lines.append(f"fresh parameters are drawn with seed {conversion.config.seed}\n")
    if _has(conversion, "lgm"):
        lines.append(f"rotation_norm {conversion.config.model.lgm.rotation_norm}\n")
    if absent:
        lines.append(f"not in the checkpoint: {', '.join(absent)}\n")
    return "".join([*lines, f"wrote {order.out}\n"])


def _has(conversion: Conversion, network: str) -> bool:
    return any(job.network == network for job in conversion.jobs)


def _check_space(out: Path, total: int) -> None:
    existing = next(p for p in (out.absolute(), *out.absolute().parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < total:
        raise InputError(
            f"{out} takes {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free; choose a place "
            "on another disk"
        )


def check(conversion: Conversion) -> None:
    """Raises an InputError that names whatever keeps the files from being the config's networks."""
    for job in conversion.jobs:
        if job.source.notes:
            known = getattr(conversion.config.model, job.network)
            check_fields(str(job.source.where), job.source.notes, known)
    wrong = [
        fault
        for job in conversion.jobs
        if (fault := faults(job.rule, job.source, _shapes(conversion.config, job.network)))
    ]
    if wrong:
        raise InputError(
            "the files do not hold the networks of the config; give other files, or the files' "
            f"own config as --config: {', and '.join(wrong)}"
        )


def _shapes(config: Config, network: Network) -> Any:
    if network == "lpips":
        return lpips_shapes(config.optim.lpips_network)
    return getattr(network_shapes(config.model), network)


def plan(conversion: Conversion, progress: Progress) -> tuple[list[Tally], Weights]:
    """The parameters, as leaves that are read when written, and a tally for each network."""
    config = conversion.config
    tallies, parts = [], {}
    for job in conversion.jobs:
        tally = Tally(job.network, job.source.where)
        parts[job.network] = {"params": _tree(config, job, tally, progress)}
        tallies.append(tally)
    trains = config.train.train_image_encoder
    clip = parts.get("clip")
    weights = Weights(
        params=Params(unet=parts.get("unet"), lgm=parts.get("lgm"), clip=clip if trains else None),
        frozen=Frozen(
            vae=parts.get("vae"), clip=None if trains else clip, lpips=parts.get("lpips")
        ),
    )
    return tallies, weights


def _tree(config: Config, job: Job, tally: Tally, progress: Progress) -> Any:
    """The network's parameters as leaves, the fresh ones drawn."""
    shapes = _shapes(config, job.network)
    leaves = plan_network(tally, job.rule, job.source, shapes, progress)
    fresh = [name for name, leaf in leaves.items() if leaf is None]
    if fresh:
        drawn = fresh_parameters(config.model, job.network, fresh, config.seed)
        for name, array in drawn.items():
            host = np.asarray(array)
            leaves[name] = Leaf(host.shape, host.dtype, read=host.view)
    return jax.tree.unflatten(jax.tree.structure(shapes), list(leaves.values()))


@exit_on_input_error()
def main() -> None:
    """Reads the command line."""
    name, *arguments = sys.argv[1:] or ["nothing"]
    if name in ("-h", "--help"):
        sys.stdout.write(str(__doc__))
        return
    if name not in ORDERS:
        raise InputError(f"cannot convert {name!r}; give svd, lgm or released first")
    sys.stdout.write(convert(parse(ORDERS[name], arguments, prog=f"convert {name}")))


if __name__ == "__main__":
    main()
