"""Sources of rendered orbits: folders of them, or the same packed by TFDS; both sorted by name."""

import functools
import re
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.orbits.folder import OrbitIndex, check_poses, find_orbits, read_frames, read_index
from o3d_jax.data.views import StoredOrbit
from o3d_jax.errors import InputError

DATASET, SPLIT = "orbit_renders", "train"
"""Names of the TFDS dataset and of its one split."""

NAMES = "names.txt"
"""In the folder of a TFDS dataset: the orbits' names, one a line, in the order of the records."""

CAMERA_TOLERANCE = 0.01
"""Relative; by how much an orbit's radius and field of view may differ from the config's."""


class FolderOrbit(NamedTuple):
    """A `views.StoredOrbit` whose frames are files."""

    name: str
    index: OrbitIndex

    @property
    def camera_to_world(self) -> Float[np.ndarray, "frames 4 4"]:
        """OpenCV axes."""
        return self.index.camera_to_world

    @property
    def fov(self) -> float:
        """Horizontal, degrees."""
        return self.index.fov

    def read(self, chosen: Int[np.ndarray, " v"]) -> UInt8[np.ndarray, "v h w 4"]:
        """Some of the frames; raises an InputError as `orbits.read_frames`."""
        return read_frames([self.index.files[i] for i in chosen])


class PackedOrbit(NamedTuple):
    """A `views.StoredOrbit` in a TFDS record; a frame is decoded when read."""

    name: str
    camera_to_world: Float[np.ndarray, "frames 4 4"]
    fov: float
    frames: Any
    """TFDS's sequence of {"image": ...}."""

    def read(self, chosen: Int[np.ndarray, " v"]) -> UInt8[np.ndarray, "v h w 4"]:
        """Some of the frames."""
        return np.stack([self.frames[int(i)]["image"] for i in chosen])


class FolderOrbits:
    """The orbits below a folder, by index; every meta.json is checked now, images when read.

    Raises:
        InputError: as `orbits.find_orbits`, `select` and `check_cameras`.
    """

    def __init__(self, root: Path, config: Config, ids: Path | None = None):
        names = select(find_orbits(root), ids)
        self._root, self._names = root, names
        for name in tqdm(names, f"checking {root}", unit="orbit", disable=len(names) < 1000):
            check_cameras(self._open(name), config)

    def __len__(self) -> int:
        return len(self._names)

    @property
    def names(self) -> list[str]:
        """Of the orbits, in order."""
        return self._names

    def __getitem__(self, index: int) -> FolderOrbit:
        return self._open(self._names[index])

    def _open(self, name: str) -> FolderOrbit:
        folder = self._root / name
        return FolderOrbit(str(folder), read_index(folder))


class PackedOrbits:
    """The orbits of a TFDS folder, by index; each is checked when read.

    Raises:
        InputError: the folder is not one that commands/build_data.py wrote, the extra [data] is not
            installed, or as `select` and, when read, `check_cameras`.
    """

    def __init__(self, folder: Path, config: Config, ids: Path | None = None):
        self._folder, self._config = folder, config
        self._records = _open_records(folder)
        self._chosen = range(len(self._records))
        if ids is not None:
            place = {name: i for i, name in enumerate(self._all_names)}
            self._chosen = [place[name] for name in select(self._all_names, ids)]

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def names(self) -> list[str]:
        """Of the orbits, in order."""
        return [self._all_names[i] for i in self._chosen]

    @functools.cached_property
    def _all_names(self) -> list[str]:
        return _packed_names(self._folder, self._records)

    def __getitem__(self, index: int) -> PackedOrbit:
        record = self._records[self._chosen[index]]
        name = f"{self._folder}: {record['name'].decode()}"
        orbit = PackedOrbit(name, record["camera_to_world"], float(record["fov"]), record["frames"])
        check_poses(name, orbit.camera_to_world)
        check_cameras(orbit, self._config)
        return orbit


def open_orbits(
    folder: Path, config: Config, ids: Path | None = None
) -> FolderOrbits | PackedOrbits:
    """The orbits in a folder of either kind; a file of ids selects among them (`select`).

    Raises:
        InputError: as `FolderOrbits` or `PackedOrbits`.
    """
    packed = packed_folder(folder)
    if packed is None:
        return FolderOrbits(folder, config, ids)
    return PackedOrbits(packed, config, ids)


def packed_folder(folder: Path) -> Path | None:
    """Where TFDS's files are: the folder itself, or its newest version below; None if nowhere."""
    if (folder / "features.json").is_file():
        return folder
    versions = [path.parent for path in folder.glob(f"{DATASET}/*/features.json")]
    versions = [path for path in versions if re.fullmatch(r"\d+\.\d+\.\d+", path.name)]
    return max(versions, default=None, key=lambda path: [int(n) for n in path.name.split(".")])


def orbit_names(folder: Path) -> list[str]:
    """Of all orbits in a folder of either kind, sorted; no orbit is opened, if that can be.

    Raises:
        InputError: as `open_orbits`, but for what is wrong with single orbits.
    """
    packed = packed_folder(folder)
    return find_orbits(folder) if packed is None else _packed_names(packed, _open_records(packed))


def object_of(name: str) -> str:
    """The name of an orbit's object, parts joined by "__" as commands/render_orbits.py does."""
    return _without_number(name).replace("/", "__")


def select(names: Sequence[str], ids: Path | None) -> list[str]:
    """The orbits of the objects that a file lists, one id a line; all if there is no file.

    An id is the name of an orbit or of an object, or parts of the latter between "__", which
    commands/render_orbits.py writes for "/": so the bare ids of Objaverse-LVIS find
    `000-023__<id>/0`. Empty lines and those that start with # do not count; ids of nothing are
    warned of.

    Raises:
        InputError: the file cannot be read, or lists none of the orbits.
    """
    if ids is None:
        return list(names)
    try:
        lines = [line.strip() for line in ids.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{ids} is no readable list of ids, one a line: {error}") from error
    wanted = {line for line in lines if line and not line.startswith("#")}
    chosen = [name for name in names if wanted & ids_of(name)]
    if not chosen:
        raise InputError(
            f"{ids} lists none of the {len(names)} orbits; they are called as {names[0]}"
        )
    if absent := wanted.difference(*map(ids_of, chosen)):
        warnings.warn(
            f"{len(absent)} of {len(wanted)} ids in {ids} are of no orbit, such as {min(absent)}",
            stacklevel=2,
        )
    return chosen


def ids_of(name: str) -> set[str]:
    """What selects an orbit: its name, its object's, and runs of the latter's parts."""
    thing = _without_number(name)
    parts = thing.replace("__", "/").split("/")
    ends = [(i, j) for i in range(len(parts)) for j in range(i + 1, len(parts) + 1)]
    runs = {joint.join(parts[i:j]) for i, j in ends for joint in ("__", "/")}
    return {name, name.replace("__", "/"), thing, *runs}


def _without_number(name: str) -> str:
    thing, _, number = name.rpartition("/")
    return thing if number.isdigit() and thing else name


def check_cameras(orbit: StoredOrbit, config: Config) -> None:
    """Raises an InputError unless an orbit has the frames, radius and field of view of a config."""
    frames, camera = len(orbit.camera_to_world), config.camera
    if frames != config.data.frames_per_orbit:
        raise InputError(
            f"{orbit.name} has {frames} frames, not data.frames_per_orbit "
            f"{config.data.frames_per_orbit}; render it anew, or change that"
        )
    distances = np.linalg.norm(orbit.camera_to_world[:, :3, 3], axis=-1)
    worst = distances[np.argmax(np.abs(distances - camera.radius))]
    if abs(worst - camera.radius) > CAMERA_TOLERANCE * camera.radius:
        raise InputError(
            f"{orbit.name}: a camera is {worst:.4g} from the origin, not camera.radius "
            f"{camera.radius}; set that, or render it anew"
        )
    if abs(orbit.fov - camera.fov) > CAMERA_TOLERANCE * camera.fov:
        raise InputError(
            f"{orbit.name}: its field of view is {orbit.fov:.4g} degrees, not camera.fov "
            f"{camera.fov}; set that, or render it anew"
        )


def _packed_names(folder: Path, records: Any) -> list[str]:
    """Of the orbits in a TFDS folder, in the order of its records.

    Sets that were packed before there was a file of names have every record read, which takes long.
    """
    path = folder / NAMES
    if not path.is_file():
        numbers = tqdm(range(len(records)), f"names in {folder}", disable=len(records) < 1000)
        return [records[i]["name"].decode() for i in numbers]
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    names = text.removesuffix("\n").split("\n")
    if len(names) != len(records):
        raise InputError(
            f"{path} has {len(names)} lines, not one for each of {len(records)} orbits; delete it, "
            "and the names are read from the orbits"
        )
    return names


def _open_records(folder: Path) -> Any:
    try:
        import tensorflow_datasets as tfds
    except ModuleNotFoundError as error:
        raise InputError(f"{folder} is a TFDS folder; pip install 'o3d-jax[data]'") from error
    try:
        builder = tfds.builder_from_directory(str(folder))
        return builder.as_data_source(split=SPLIT)  # pyright: ignore[reportCallIssue]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(
            f"{folder} is no complete dataset of commands/build_data.py: {error}"
        ) from error
