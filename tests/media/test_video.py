import os
import stat
import sys

import numpy as np
import pytest
from PIL import Image, ImageSequence

from o3d_jax.media.video import write_gif, write_mp4


def turning(frames, height, width):
    """Smooth, many-colored frames on white, each different."""
    t = np.arange(frames)[:, None, None, None] / frames
    y = np.linspace(0, 1, height)[None, :, None, None]
    x = np.linspace(0, 1, width)[None, None, :, None]
    phase = 2 * np.pi * (t + np.array([0.0, 0.33, 0.67])[None, None, None])
    colors = 0.5 + 0.3 * np.sin(phase + 3 * x + 2 * y)
    inside = (x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.16
    return np.where(inside, colors, 1).astype(np.float32)


def test_a_gif_repeats_forever_at_its_pace_and_shows_the_frames(tmp_path):
    frames = turning(15, 40, 52)
    write_gif(tmp_path / "a.gif", frames, fps=25.0)
    with Image.open(tmp_path / "a.gif") as film:
        assert (film.n_frames, film.info["loop"], film.size) == (15, 0, (52, 40))
        shown, times = [], []
        for frame in ImageSequence.Iterator(film):
            times.append(frame.info["duration"])
            shown.append(np.asarray(frame.convert("RGB"), np.float32) / 255)
    assert times == [40] * 15
    error = np.stack(shown) - frames
    # 52 dB measured, 37 with a tenth of the colors; white, most of the picture, stays white.
    assert -10 * np.log10((error**2).mean()) > 45
    assert (np.stack(shown)[:, 0, :] == 1).all()


def install(folder, monkeypatch, script):
    """Puts a program called ffmpeg on an otherwise empty PATH."""
    program = folder / "ffmpeg"
    program.write_text(f"#!{sys.executable}\nimport os, sys\n{script}")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", str(folder))


ECHO = """
data = sys.stdin.buffer.read()
if sys.argv[sys.argv.index("-c:v") + 1] != "{codec}":
    sys.exit(1)
open(sys.argv[-1], "wb").write(" ".join(sys.argv[1:-1]).encode() + b"|" + data)
"""


def test_without_ffmpeg_there_is_no_mp4(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert write_mp4(tmp_path / "a.mp4", turning(3, 4, 6)) is False
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("codec", ["libx264", "mpeg4"])
def test_ffmpeg_gets_even_frames_and_the_codec_it_has(tmp_path, monkeypatch, codec):
    install(tmp_path, monkeypatch, ECHO.format(codec=codec))
    frames = turning(3, 5, 7)
    assert write_mp4(tmp_path / "a.mp4", frames, fps=12.0) is True
    arguments, _, data = (tmp_path / "a.mp4").read_bytes().partition(b"|")
    for wanted in ("-s 8x6", "-r 12.0", f"-c:v {codec}", "-pix_fmt rgb24", "-pix_fmt yuv420p"):
        assert wanted in arguments.decode()
    sent = np.frombuffer(data, np.uint8).reshape(3, 6, 8, 3)
    expected = np.round(frames * 255).astype(np.uint8)
    np.testing.assert_array_equal(sent[:, :5, :7], expected)
    np.testing.assert_array_equal(sent[:, 5], sent[:, 4])
    np.testing.assert_array_equal(sent[:, :, 7], sent[:, :, 6])


def test_an_ffmpeg_without_codec_leaves_nothing_behind(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "open(sys.argv[-1], 'wb').write(b'half'); sys.exit(1)\n")
    assert write_mp4(tmp_path / "a.mp4", turning(3, 4, 6)) is False
    assert [p.name for p in tmp_path.iterdir()] == ["ffmpeg"]


def test_an_ffmpeg_that_dies_while_reading_leaves_nothing_behind(tmp_path, monkeypatch):
    install(tmp_path, monkeypatch, "os.kill(os.getpid(), 9)\n")
    assert write_mp4(tmp_path / "a.mp4", turning(40, 64, 64)) is False
    assert os.listdir(tmp_path) == ["ffmpeg"]
