"""The README on the rasterizer by itself: its code runs, and its picture is of that code."""

import contextlib
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
SIZE = 220
STEPS = 130
"""Instead of 1,000; the README's code shows the state after 100 of them."""


@pytest.fixture(scope="module")
def section():
    """From the marker to the next heading."""
    (_, after) = (ROOT / "README.md").read_text().split("<!-- splat-alone -->\n")
    return after.split("\n## ")[0]


@pytest.fixture(scope="module")
def code(section):
    (block,) = re.findall(r"^```python\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    return block


def panels(path):
    """The picture, and its fits from the first to the last, in [0, 1]."""
    pixels = np.asarray(Image.open(path).convert("RGB"), np.float64) / 255
    assert pixels.shape == (SIZE, 5 * SIZE, 3)
    return np.split(pixels, 5, axis=1)


def decibels(a, b):
    return -10 * np.log10(((a - b) ** 2).mean())


def robot():
    """The bundled picture on white, by Pillow, at the place that the README's code cuts out."""
    drawn = Image.open(ROOT / "o3d_jax" / "assets" / "robot.png")
    white = Image.new("RGBA", drawn.size, "white")
    image = Image.alpha_composite(white, drawn).convert("RGB").crop((18, 16, 238, 236))
    return np.asarray(image, np.float64) / 255


def test_the_code_is_thirty_lines(code):
    lines = [line for line in code.splitlines() if line]
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 100
    assert "(2000, 3)" in code


def test_the_code_fits_the_picture(code, tmp_path):
    assert code.count("1000") == 2
    (tmp_path / "o3d_jax").symlink_to(ROOT / "o3d_jax")  # The code reads the picture from there.
    with contextlib.chdir(tmp_path):
        exec(compile(code.replace("1000", str(STEPS)), "README.md", "exec"), {})
    target, *fits = panels(tmp_path / "fit.png")
    np.testing.assert_allclose(target, robot(), atol=1.01 / 255)  # Each rounds by itself.
    reached = [decibels(fit, target) for fit in fits]
    # Measured: 8.9, 21.1, 28.7 and 28.9 dB. Rounding, which steps multiply, changes these by 0.02.
    assert abs(reached[0] - 8.9) < 0.1
    assert all(np.array(reached[1:]) > [20.5, 28.2, 28.4]), reached


def test_the_pictures_last_fit_is_as_good_as_the_text_says(section):
    (name,) = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", section)
    target, *fits = panels(ROOT / name)
    np.testing.assert_allclose(target, robot(), atol=1.01 / 255)
    reached = [decibels(fit, target) for fit in fits]
    assert reached == sorted(reached)
    (said,) = re.findall(r"([0-9.]+) dB", section)
    assert abs(reached[-1] - float(said)) < 0.1
    assert (ROOT / name).stat().st_size < 150_000
