"""Sources of rendered orbits: folders of them, or the same packed by TFDS; both sorted by name."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int, UInt8
from tqdm import tqdm

from o3d_jax.config import Config
from o3d_jax.data.orbits.folder import OrbitIndex, check_poses, find_orbits, read_frames, read_index
from o3d_jax.data.orbits.names import select
from o3d_jax.data.orbits.packed import open_records, packed_folder, packed_names
from o3d_jax.data.views import StoredOrbit
from o3d_jax.errors import InputError

CAMERA_TOLERANCE = 0.01
"""By how much an orbit's radius and field of view may differ from the config's, relatively."""


class FolderOrbit(NamedTuple):
    """A `views.StoredOrbit` whose frames are files."""

    name: str
    index: OrbitIndex

    @property
    def camera_to_world(self) -> Float[np.ndarray, "frames 4 4"]:
        """Poses of all frames, with OpenCV's axes."""
        return self.index.camera_to_world

    @property
    def fov(self) -> float:
        """Horizontal field of view, degrees."""
        return self.index.fov

    def read(self, chosen: Int[np.ndarray, " v"]) -> UInt8[np.ndarray, "v h w 4"]:
        """Returns some of the frames; raises an InputError as `orbits.read_frames`."""
        return read_frames([self.index.files[i] for i in chosen])


class PackedOrbit(NamedTuple):
    """A `views.StoredOrbit` in a TFDS record; a frame is decoded when read."""

    name: str
    camera_to_world: Float[np.ndarray, "frames 4 4"]
    fov: float
    frames: Any
    """TFDS's sequence of {"image": ...}."""

    def read(self, chosen: Int[np.ndarray, " v"]) -> UInt8[np.ndarray, "v h w 4"]:
        """Returns some of the frames."""
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
        """The orbits' names, in order."""
        return self._names

    def __getitem__(self, index: int) -> FolderOrbit:
        return self._open(self._names[index])

    def _open(self, name: str) -> FolderOrbit:
        folder = self._root / name
        return FolderOrbit(str(folder), read_index(folder))


class PackedOrbits:
    """The orbits of a TFDS folder, by index; each is checked when read.

    Raises:
        InputError: the folder is not one that `o3d data build` wrote, the extra [data] is not
            installed, or as `select` and, when read, `check_cameras`.
    """

    def __init__(self, folder: Path, config: Config, ids: Path | None = None):
        self._folder, self._config = folder, config
        self._records = open_records(folder)
        self._chosen = range(len(self._records))
        if ids is not None:
            place = {name: i for i, name in enumerate(self._all_names)}
            self._chosen = [place[name] for name in select(self._all_names, ids)]

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def names(self) -> list[str]:
        """The orbits' names, in order."""
        return [self._all_names[i] for i in self._chosen]

    @functools.cached_property
    def _all_names(self) -> list[str]:
        return packed_names(self._folder, self._records)

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
    """Returns the orbits in a folder of either kind; a file of ids selects among them (`select`).

    Raises:
        InputError: as `FolderOrbits` or `PackedOrbits`.
    """
    packed = packed_folder(folder)
    if packed is None:
        return FolderOrbits(folder, config, ids)
    return PackedOrbits(packed, config, ids)


def orbit_names(folder: Path) -> list[str]:
    """Returns the names of all orbits in a folder of either kind, sorted.

    No orbit is opened for it, if that can be.

    Raises:
        InputError: as `open_orbits`, but for what is wrong with single orbits.
    """
    packed = packed_folder(folder)
    return find_orbits(folder) if packed is None else packed_names(packed, open_records(packed))


def check_cameras(orbit: StoredOrbit, config: Config) -> None:
    """Raises an InputError unless an orbit has the frames, radius and field of view of a config."""
    frames, camera = len(orbit.camera_to_world), config.camera
    if frames != config.data.frames_per_orbit:
        raise InputError(
            f"{orbit.name} has {frames} frames, not data.frames_per_orbit "
            f"{config.data.frames_per_orbit}; render it anew, or change that"
        )

    # The camera that is farthest from where it should be decides, and is named.
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
