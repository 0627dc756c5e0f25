"""What lies in a folder that TFDS has packed, and how to open it; packing.py writes it."""

import re
from pathlib import Path
from typing import Any

from tqdm import tqdm

from o3d_jax.errors import InputError

DATASET, SPLIT = "orbit_renders", "train"
"""Names of the TFDS dataset and of its one split."""

NAMES = "names.txt"
"""A file in a TFDS dataset's folder: the orbits' names, one a line, in the order of records."""


def packed_folder(folder: Path) -> Path | None:
    """Returns where TFDS's files are: the folder itself, or its newest version below, or None."""
    if (folder / "features.json").is_file():
        return folder
    versions = [path.parent for path in folder.glob(f"{DATASET}/*/features.json")]
    versions = [path for path in versions if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, default=None, key=lambda path: [int(n) for n in path.name.split(".")])


def packed_names(folder: Path, records: Any) -> list[str]:
    """Returns the names of the orbits in a TFDS folder, in the order of its records.

    Sets that were packed before there was a file of names have every record read, which takes long.
    """
    path = folder / NAMES
    if not path.is_file():
        count, few = len(records), len(records) < 1000
        numbers = tqdm(range(count), f"names in {folder}", disable=few, unit="orbit")
        return [records[i]["name"].decode() for i in numbers]
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    names = text.removesuffix("\n").split("\n")
    if len(names) != len(records):
        raise InputError(
            f"{path} has {len(names)} lines, not one for each of {len(records)} orbits; delete it, "
            "and the names are read from the orbits"
        )
    return names


def open_records(folder: Path) -> Any:
    """Returns the records of a folder that TFDS has packed, by number.

    Raises:
        InputError: the extra [data] is not installed, or the folder is not whole.
    """
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise InputError(f"{folder} is a TFDS folder; pip install 'o3d-jax[data]'") from error
    try:
        builder = tfds.builder_from_directory(str(folder))
        return builder.as_data_source(split=SPLIT)  # pyright: ignore[reportCallIssue]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder} is no complete dataset of `o3d data build`: {error}") from error
