"""Short films: GIF always, MP4 where an `ffmpeg` with a codec is found."""

import math
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from jaxtyping import Array, Float, UInt8
from PIL import Image

from o3d_jax.files.atomic import written_whole
from o3d_jax.files.images import to_bytes

Frames = Float[Array | np.ndarray, "t h w 3"]

_PALETTE_FRAMES = 12  # A palette from so many frames fits an orbit; more only cost time.
_CODECS = ("libx264", "mpeg4")  # The better first; every ffmpeg has the second.


def write_gif(path: str | os.PathLike[str], frames: Frames, fps: float = 20.0) -> None:
    """Writes frames in [0, 1] as a GIF that repeats forever, whole or not at all.

    All frames share one palette, or colors would flicker; GIF counts in hundredths of a second.
    """
    pixels = to_bytes(frames)
    chosen = pixels[:: math.ceil(len(pixels) / _PALETTE_FRAMES)]
    stacked = Image.fromarray(chosen.reshape(-1, *pixels.shape[2:]))
    palette = stacked.quantize(256, method=Image.Quantize.MEDIANCUT)

    # Dithering hides the steps that 256 colors leave in smooth shading.
    pictures = [
        Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
        for frame in pixels
    ]

    with written_whole(path) as temporary:
        pictures[0].save(
            temporary,
            format="GIF",
            save_all=True,
            append_images=pictures[1:],
            duration=10 * max(2, round(100 / fps)),  # ms; browsers slow down anything below 20.
            loop=0,  # Forever.
        )


def write_mp4(path: str | os.PathLike[str], frames: Frames, fps: float = 20.0) -> bool:
    """Writes frames in [0, 1] as MP4 (yuv420p, which every player reads); returns whether it could.

    Takes the first `ffmpeg` on PATH and the first of its codecs that works. An odd last row or
    column is doubled, for yuv420p needs even sizes. Whole or not at all.
    """
    ffmpeg = shutil.which("ffmpeg")
    if ffmpeg is None:
        return False
    pixels = to_bytes(frames)
    odd_rows, odd_columns = pixels.shape[1] % 2, pixels.shape[2] % 2
    pixels = np.pad(pixels, ((0, 0), (0, odd_rows), (0, odd_columns), (0, 0)), mode="edge")
    return any(_encode(ffmpeg, codec, Path(path), pixels, fps) for codec in _CODECS)


def _encode(
    ffmpeg: str, codec: str, path: Path, pixels: UInt8[np.ndarray, "t h w 3"], fps: float
) -> bool:
    """Writes the film with one codec; returns whether that worked."""
    size = f"{pixels.shape[2]}x{pixels.shape[1]}"
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(fps), "-i", "-"]
    quality = ["-crf", "18"] if codec == "libx264" else ["-q:v", "3"]  # Both: hardly visible loss.
    output = ["-an", "-c:v", codec, *quality, "-pix_fmt", "yuv420p", "-movflags", "+faststart"]

    # ffmpeg writes beside, not in place: where it fails midway, no half film is left.
    with tempfile.TemporaryDirectory() as folder:
        film = Path(folder) / "film.mp4"
        command = [ffmpeg, "-v", "error", "-y", *source, *output, str(film)]
        done = subprocess.run(command, input=pixels.tobytes(), capture_output=True, check=False)
        if done.returncode or not film.is_file():
            return False
        with written_whole(path) as temporary:
            shutil.copyfile(film, temporary)
    return True
