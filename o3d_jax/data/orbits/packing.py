"""The TFDS dataset `orbit_renders`: rendered orbits in array_record files, without TensorFlow.

Needs the extra [data]. One record an orbit: its name, field of view, cameras (OpenCV axes), and
the frames as PNG, which a reader decodes one by one. Depth and position maps stay in the folders.
Beside the records lies names.txt, the orbits' names in the same order, one a line.
"""

import functools
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image
from tqdm import tqdm

from o3d_jax.data.orbits.folder import find_orbits, read_frames, read_index
from o3d_jax.data.orbits.names import select
from o3d_jax.data.orbits.packed import NAMES, SPLIT
from o3d_jax.errors import InputError

JUDGED = 100
"""How many orbits are read to see what shape most have: it takes seconds in the largest set."""

Item = tuple[int, str]  # An orbit's number, which is its key in TFDS, and name.
Example = tuple[int, dict[str, Any]]  # TFDS's own form: key and features.
Pack = Callable[[Item], Iterator[Example]]


class OrbitRenders(tfds.core.GeneratorBasedBuilder):
    """Packs the orbits of a folder in the order of their names.

    Most orbits decide how many frames of what size there are; those that differ, or cannot be read,
    are left out and logged.
    """

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Frames as PNG, cameras with OpenCV axes, orbits by name."}

    def __init__(self, *, root: Path, ids: Path | None = None, beam: bool = False, **kwargs: Any):
        """`root` as in `orbits`, `ids` as in `rendered.select`; the rest is TFDS's.

        Raises:
            InputError: no orbit is there, chosen, or readable.
        """
        self._root, self._beam = root, beam
        self.names = select(find_orbits(root), ids)
        self._shape = _usual_shape(root, self.names)
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        frames, h, w, _ = self._shape
        image = tfds.features.Image(shape=(h, w, 4), encoding_format="png")
        exact = {"dtype": np.float64, "encoding": "bytes"}  # TFDS would round them to float32.
        features = {
            "name": tfds.features.Text(),
            "fov": tfds.features.Tensor(shape=(), **exact),
            "camera_to_world": tfds.features.Tensor(shape=(frames, 4, 4), **exact),
            "frames": tfds.features.Dataset({"image": image}, length=frames),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            description="Objects, each rendered with alpha from cameras on a circle around it.",
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,  # The loader shuffles; so both kinds of folder have one order.
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Any:
        pack = functools.partial(pack_orbit, self._root, self._shape)
        if self._beam:
            return self._packed_by_beam(pack)
        return self._packed_here(pack)

    def _packed_here(self, pack: Pack) -> Iterator[Example]:
        packed = []
        for item in tqdm(list(enumerate(self.names)), "packing", unit="orbit"):
            for example in pack(item):
                packed.append(item)
                yield example
        _write_names(self._names_file, packed)

    def _packed_by_beam(self, pack: Pack) -> Any:
        import apache_beam as beam  # pyright: ignore[reportMissingImports]

        def expand(pipeline: Any) -> Any:
            examples = pipeline | beam.Create(list(enumerate(self.names))) | beam.FlatMap(pack)
            packed = examples | "names" >> beam.Map(_item) | beam.combiners.ToList()
            write = functools.partial(_write_names, self._names_file)
            _ = packed | "file of names" >> beam.Map(write)
            return examples

        return beam.ptransform_fn(expand)()

    @property
    def _names_file(self) -> Path:
        """A file in the folder that becomes the dataset's when all is written."""
        return Path(self.data_dir) / NAMES


def pack_orbit(root: Path, shape: Sequence[int], item: Item) -> Iterator[Example]:
    """Yields the record of the orbit with this number and name, or only warns if it is broken.

    All its frames are decoded once, to be sure of them; PNG files go in as they are.
    """
    number, name = item
    try:
        index = read_index(root / name)
        rgba = read_frames(index.files)
        if rgba.shape != tuple(shape):
            raise InputError(f"{root / name} has frames of shape {rgba.shape}, others {shape}")
    except InputError as error:
        logging.getLogger(__name__).warning("left out: %s", error)
        return

    # A PNG file goes in as it is; TFDS encodes what is given as an array.
    images = [
        path.read_bytes() if path.suffix == ".png" else Image.fromarray(frame)
        for path, frame in zip(index.files, rgba, strict=True)
    ]
    yield (
        number,
        {
            "name": name,
            "fov": index.fov,
            "camera_to_world": index.camera_to_world,
            "frames": [{"image": image} for image in images],
        },
    )


def _item(example: Example) -> Item:
    return example[0], example[1]["name"]


def _write_names(path: Path, packed: Sequence[Item]) -> None:
    path.write_text("".join(f"{name}\n" for _, name in sorted(packed)), encoding="utf-8")


def _usual_shape(root: Path, names: Sequence[str]) -> tuple[int, ...]:
    """Returns the shape of most orbits' frames, judged by some all over the set.

    If none of these can be read, it is that of the first orbit that can.

    Raises:
        InputError: none can be read.
    """
    spread = np.linspace(0, len(names) - 1, min(len(names), JUDGED)).astype(int)
    faults: list[InputError] = []
    shapes = list(_shapes(root, [names[int(i)] for i in spread], faults))
    if shapes:
        return Counter(shapes).most_common(1)[0][0]
    for shape in _shapes(root, names, faults):
        return shape
    raise InputError(
        f"none of the {len(names)} orbits below {root} can be read; the last: {faults[-1]}"
    )


def _shapes(root: Path, names: Sequence[str], faults: list[InputError]) -> Iterator[tuple]:
    """Yields the shapes of those that can be read; why others cannot is added to `faults`."""
    for name in names:
        try:
            yield read_frames(read_index(root / name).files).shape
        except InputError as error:
            faults.append(error)
