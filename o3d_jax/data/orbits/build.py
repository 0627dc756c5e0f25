"""Packs rendered orbits into a TFDS dataset, in this process or by Apache Beam."""

import contextlib
import dataclasses
import errno
import io
import os
import tempfile
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

from o3d_jax.data.orbits.packed import DATASET, SPLIT
from o3d_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Build:
    """What to pack, and how."""

    rendered: Annotated[Path, tyro.conf.Positional]
    """Folder of rendered orbits."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder for datasets."""
    ids: Path | None = None
    """File of objects to take, one id a line (Objaverse-LVIS, GSO, train.txt of the release)."""
    beam: tuple[str, ...] = ()
    """Pack by Apache Beam, with its options, e.g. runner=DirectRunner direct_num_workers=2."""


class Built(NamedTuple):
    """What was packed, and where."""

    folder: Path
    found: int
    """Orbits that were to be packed."""
    packed: int


def build(order: Build) -> Built:
    """Packs orbits, in this process or by Beam.

    Raises:
        InputError: nothing can be packed, the dataset exists already, or a package is missing.
        OSError: the disk is full; nothing is left of what was written.
    """
    try:
        import tensorflow_datasets as tfds

        from o3d_jax.data.orbits.packing import OrbitRenders
    except ModuleNotFoundError as error:
        raise InputError(f"no package {error.name}; pip install 'o3d-jax[data]'") from error

    target = order.out / DATASET / str(OrbitRenders.VERSION)
    if target.exists():
        raise InputError(f"{target} exists already; move it, or choose another folder than its")
    builder = OrbitRenders(
        root=order.rendered,
        ids=order.ids,
        beam=bool(order.beam),
        data_dir=order.out,
        file_format="array_record",
    )
    order.out.mkdir(parents=True, exist_ok=True)
    settings = tfds.download.DownloadConfig(**_beam_settings(order.beam))
    tfds.disable_progress_bar()  # It counts steps of its own.

    # TFDS insists on a folder for downloads, and tells of them on stdout.
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(io.StringIO()):
        try:
            builder.download_and_prepare(download_dir=scratch, download_config=settings)
        except RuntimeError as error:  # All that array_record's writer raises.
            for code in (errno.ENOSPC, errno.EDQUOT):
                if os.strerror(code) in str(error):
                    raise OSError(code, os.strerror(code), str(order.out)) from error
            raise
    return Built(target, len(builder.names), builder.info.splits[SPLIT].num_examples)


def _beam_settings(options: tuple[str, ...]) -> dict[str, Any]:
    if not options:
        return {}
    try:
        from apache_beam.options import pipeline_options  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise InputError("--beam needs Apache Beam; pip install apache-beam") from error
    chosen = [f"--{option.removeprefix('--')}" for option in options]
    return {"beam_options": pipeline_options.PipelineOptions(chosen)}
