"""How to evaluate, as a file: all that a number depends on besides the model and the data."""

import dataclasses
import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from o3d_jax.config import require
from o3d_jax.errors import InputError
from o3d_jax.weights.checkpoint import BUNDLED, config_from_dict

BUNDLED_PROTOCOLS = BUNDLED / "protocols"
"""The folder of the protocols that come with the package."""


def _number(name: str, value: Any, least: int) -> None:
    whole = isinstance(value, int) and not isinstance(value, bool)
    require(whole and value >= least, f"{name} {value!r} is no whole number of at least {least}")


@dataclass(frozen=True)
class ObjectsProtocol:
    """Which orbits of a rendered folder."""

    names: Literal["all"] | tuple[str, ...] = "all"
    """Names of objects."""
    orbits: Literal["all"] | tuple[int, ...] = "all"
    """Orbits of each object, in the order of their names; an object's number is their mean."""

    def __post_init__(self) -> None:
        for name, most in (("names", str), ("orbits", int)):
            value = getattr(self, name)
            listed = isinstance(value, tuple) and all(isinstance(x, most) for x in value)
            require(
                value == "all" or (listed and len(set(value)) == len(value) > 0),
                f'{name} {value!r} is neither "all" nor a list without repetitions',
            )
        require(
            self.orbits == "all" or min(self.orbits) >= 0, f"orbits {self.orbits!r} count from 0"
        )


@dataclass(frozen=True)
class ViewsProtocol:
    """Which frames of an orbit."""

    first_frame: int = 0
    """The frame that is the input view."""
    frames: Literal["model"] | tuple[int, ...] = "model"
    """Frames that the model's views are compared with, counted from the first one; "model": as it
    has been trained (`data.orbit_frames`)."""
    input_view: Literal["apart", "included"] = "apart"
    """Whether means include the input view; its own numbers are told in any case."""

    def __post_init__(self) -> None:
        _number("first_frame", self.first_frame, 0)
        listed = isinstance(self.frames, tuple) and all(isinstance(x, int) for x in self.frames)
        require(
            self.frames == "model"
            or (listed and self.frames[:1] == (0,) and len(set(self.frames)) == len(self.frames)),
            f'frames {self.frames!r} is neither "model" nor a list of frames that begins with 0, '
            "the input",
        )


@dataclass(frozen=True)
class ImagesProtocol:
    """How images are made comparable."""

    resolution: Literal["model"] | int = "model"
    """Pixels along a side at which they are compared."""
    resize_filter: Literal["area", "bicubic"] = "area"
    """How truth and input are resized from the file's size, with alpha premultiplied; and views,
    where the model makes them in another size."""
    background: tuple[float, ...] = (1.0, 1.0, 1.0)
    """The color under transparent pixels. Models draw on white, so there is no other."""
    blending: Literal["display", "linear"] = "display"
    """What values alpha blends: those of the file (release), or linear light."""

    def __post_init__(self) -> None:
        if self.resolution != "model":
            _number("resolution", self.resolution, 16)
        require(
            tuple(self.background) == (1.0, 1.0, 1.0),
            f"background {self.background}: models draw on white; give [1.0, 1.0, 1.0]",
        )


@dataclass(frozen=True)
class SamplingProtocol:
    """How views are sampled, where the model's config leaves it open."""

    seed: int = 0
    """With the name of an orbit, it gives the noise that its sampling starts from."""
    levels: Literal["model"] | int = "model"
    """Noise levels."""

    def __post_init__(self) -> None:
        _number("seed", self.seed, 0)
        require(self.seed < 2**32, f"seed {self.seed} is not below 2^32")
        if self.levels != "model":
            _number("levels", self.levels, 2)


@dataclass(frozen=True)
class MetricsProtocol:
    """What is measured, per view: all pixels and channels, values clipped to [0, 1]."""

    psnr_most: float = 100.0
    """The PSNR in dB that stands for equal images, for which it is infinite."""
    ssim_window: int = 11
    """Width of SSIM's window, pixels."""
    ssim_sigma: float = 1.5
    """Standard deviation of the window, pixels."""
    ssim_border: Literal["inside", "reflected"] = "inside"
    """What windows are averaged: those inside the image, as scikit-image does, or one around each
    pixel of an image mirrored at its edges, as torchmetrics does."""
    lpips_network: Literal["vgg", "alex"] = "vgg"
    lpips_size: Literal["compared"] | int = "compared"
    """Pixels along a side that images are resized to for LPIPS."""

    def __post_init__(self) -> None:
        _number("ssim_window", self.ssim_window, 3)
        require(self.ssim_window % 2 == 1, f"ssim_window {self.ssim_window} is not odd")
        require(self.ssim_sigma > 0, f"ssim_sigma {self.ssim_sigma} must be above 0")
        require(self.psnr_most > 0, f"psnr_most {self.psnr_most} must be above 0")
        if self.lpips_size != "compared":
            _number("lpips_size", self.lpips_size, 31)


@dataclass(frozen=True)
class IntervalsProtocol:
    """Confidence intervals of means: percentile bootstrap over objects."""

    coverage: float = 0.95
    draws: int = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        require(0 < self.coverage < 1, f"coverage {self.coverage} is not in 0 .. 1")
        _number("draws", self.draws, 100)
        _number("seed", self.seed, 0)


@dataclass(frozen=True)
class Protocol:
    """How to evaluate."""

    name: str
    version: int
    """A number that becomes another one with any change of a value."""
    objects: ObjectsProtocol = ObjectsProtocol()
    views: ViewsProtocol = ViewsProtocol()
    images: ImagesProtocol = ImagesProtocol()
    sampling: SamplingProtocol = SamplingProtocol()
    metrics: MetricsProtocol = MetricsProtocol()
    intervals: IntervalsProtocol = IntervalsProtocol()

    def __post_init__(self) -> None:
        require(isinstance(self.name, str) and bool(self.name), f"name {self.name!r} is no name")
        _number("version", self.version, 1)

    @property
    def sha256(self) -> str:
        """A digest of all values, whichever way the file is written."""
        values = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(values.encode()).hexdigest()


def read_protocol(name: str) -> Protocol:
    """Returns a bundled protocol by its name, or that of a TOML file, with defaults filled in.

    Where `objects.names` is the name of a file beside it, that file has an object's name a line.

    Raises:
        InputError: no such protocol, a damaged file, an unknown field, or an impossible value.
    """
    bundled = BUNDLED_PROTOCOLS / f"{name}.toml"
    path = bundled if Path(name).name == name and bundled.is_file() else Path(name)
    if not path.is_file():
        known = ", ".join(sorted(p.stem for p in BUNDLED_PROTOCOLS.glob("*.toml")))
        raise InputError(f"no protocol {name}; give a TOML file, or one of {known}")

    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # No TOML, no text, or too deep.
        raise InputError(f"{path} is no TOML file: {error}") from error

    objects = values.get("objects")
    if isinstance(objects, dict) and isinstance(objects.get("names"), str | type(None)):
        listed = objects.get("names") or "all"
        values["objects"] = objects | {"names": _names(path.parent, listed)}
    return config_from_dict(values, Protocol, str(path))


def _names(folder: Path, listed: str) -> Literal["all"] | list[str]:
    """Returns the names in a file beside a protocol, unless it says "all"."""
    if listed == "all":
        return "all"
    path = folder / listed
    try:
        if not path.is_file():
            raise InputError(
                f'no file {path} with names of objects; objects.names may also be "all"'
            )
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text in UTF-8: {error}; save it anew") from error
    except OSError as error:  # Also of a name that is too long.
        raise InputError(f"objects.names cannot be read: {error}") from error
    return [line.strip() for line in lines if line.strip()]
