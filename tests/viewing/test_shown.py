"""What the viewer shows of a level, against the renderer; and what needs no browser."""

import dataclasses
import importlib.util
import json
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.__main__ import main as o3d
from o3d_jax.config import Config, LgmConfig, ModelConfig, to_dict
from o3d_jax.errors import InputError
from o3d_jax.files.images import save_png
from o3d_jax.media.gaussians import MIN_OPACITY
from o3d_jax.media.ply import write_ply
from o3d_jax.media.sheets import grid, row_of
from o3d_jax.sampling.loop import Level, orbit_cameras, view_azimuths
from o3d_jax.sampling.result import write_pictures
from o3d_jax.splat import render
from o3d_jax.types import Gaussians
from o3d_jax.viewing import line
from o3d_jax.viewing.scene import covariances
from o3d_jax.viewing.shown import look_at, read_shown, upright_cameras
from o3d_jax.viewing.uploads import shown_name

ELEVATION, SIZE = 25.0, 24
CONFIG = Config(name="few", model=ModelConfig(num_views=4, lgm=LgmConfig(num_views=4)))


def few_gaussians(n=9):
    rng = np.random.default_rng(0)
    return Gaussians(
        means=jnp.asarray(rng.uniform(-0.4, 0.4, (n, 3)), jnp.float32),
        scales=jnp.asarray(rng.uniform(0.02, 0.2, (n, 3)), jnp.float32),
        quats=jnp.asarray(rng.normal(size=(n, 4)), jnp.float32),
        opacities=jnp.asarray([*rng.uniform(0.2, 0.9, n - 1), MIN_OPACITY / 2], jnp.float32),
        colors=jnp.asarray(rng.uniform(size=(n, 3)), jnp.float32),
    )


draw = jax.jit(render, static_argnums=2)


def level():
    cameras = orbit_cameras(CONFIG, ELEVATION, view_azimuths(CONFIG))
    rendering = draw(few_gaussians(), cameras, (SIZE, SIZE), jnp.ones(3))
    images = np.asarray(jnp.round(rendering.rgb * 255), np.uint8)
    return Level(
        sigma=2.0,
        latents=np.zeros((4, 3, 3, 4), np.float32),
        views=images,
        guide=np.zeros_like(images),
        renders=images,
        alpha=images[..., 0],
        gaussians=few_gaussians(),
    )


def test_the_upright_object_looks_from_its_cameras_as_the_object_from_the_method_s():
    look = look_at(CONFIG, level(), ELEVATION)
    cameras = upright_cameras(CONFIG, ELEVATION)
    rendering = draw(look.gaussians, cameras, (SIZE, SIZE), jnp.ones(3))
    assert len(look.gaussians.opacities) == 8  # One is too transparent for the files.
    # Half a step of rounding, and what the faint one adds: 255 * 0.0025 in one of its pixels.
    np.testing.assert_allclose(255 * rendering.rgb, look.renders, atol=0.5 + 0.7)
    heights = np.asarray(cameras.camera_to_world)[:, 1, 3]
    radius = CONFIG.camera.radius
    np.testing.assert_allclose(heights, radius * np.sin(np.deg2rad(ELEVATION)), rtol=1e-5)


def test_covariances_are_those_of_a_hand_calculation():
    turned = Gaussians(
        means=jnp.zeros((2, 3)),
        scales=jnp.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]),
        quats=jnp.array([[2.0, 0, 0, 2.0], [0, 0, 0, 0]]),  # 90 degrees about z; the identity.
        opacities=jnp.ones(2),
        colors=jnp.ones((2, 3)),
    )
    expected = [np.diag([4.0, 1.0, 9.0]), np.diag([1.0, 4.0, 9.0])]
    np.testing.assert_allclose(covariances(turned), expected, atol=1e-12)


@pytest.mark.parametrize("tile", [128, 150])
def test_tiles_of_a_sheet_come_back_and_no_other_picture_has_any(tile):
    images = [np.random.default_rng(i).integers(0, 256, (tile, tile, 3)) / 255 for i in range(3)]
    sheet = grid([images], column_labels=["a", "b", "c"])
    for image, found in zip(images, row_of(sheet, 3), strict=True):
        np.testing.assert_allclose(found, image, atol=1e-6)
    with pytest.raises(InputError, match=r"is none of 4 views"):
        row_of(sheet, 4)


def result(folder):
    """A result without kept levels."""
    write_pictures(folder, CONFIG, [level()])
    write_ply(folder / "gaussians.ply", look_at(CONFIG, level(), ELEVATION).gaussians)
    manifest = {"config": to_dict(CONFIG), "elevation": ELEVATION, "up": "y-down"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_a_result_without_levels_is_read_from_its_files(tmp_path):
    shown = read_shown(result(tmp_path))
    (look,) = shown.looks
    # Enlarged to tiles of 128 pixels: the same picture on average.
    np.testing.assert_allclose(look.views.mean((1, 2)), level().views.mean((1, 2)), atol=2)
    expected = look_at(CONFIG, level(), ELEVATION).gaussians
    np.testing.assert_allclose(look.gaussians.means, expected.means, atol=1e-6)
    assert look.views.shape == (4, 128, 128, 3) and shown.mesh is None
    (tmp_path / "mesh.glb").write_bytes(b"glTF")
    assert read_shown(tmp_path).mesh == b"glTF"


def test_what_cannot_be_viewed_is_refused_with_its_reason(tmp_path):
    def said(folder):
        with pytest.raises(InputError) as error:
            read_shown(folder)
        return str(error.value)

    assert "holds no result; give OUT/NAME" in said(tmp_path)
    (tmp_path / "manifest.json").write_text("{")
    assert "manifest.json is damaged" in said(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    assert "older version" in said(tmp_path)
    (result(tmp_path) / "views.png").unlink()
    assert "views.png does not exist" in said(tmp_path)
    save_png(tmp_path / "views.png", np.ones((20, 30, 3)))
    assert "is none of 4 views" in said(tmp_path)


@pytest.mark.parametrize("command", ["view out", "demo"])
def test_without_viser_one_line_names_the_extra(command, capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit) as stop:
        o3d(command.split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.count("\n") == 1
    assert "pip install 'o3d_jax[view]'" in error


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\Windows\\a b.png", "a_b.png"),
        ("..", "image"),
        ("", "image"),
        ("<script>.png", "_script_.png"),
        ("\u202egnp.exe", "_gnp.exe"),
        ("x" * 300 + ".png", "x" * 40),
    ],
)
def test_a_name_is_shown_without_folders_and_marks(name, shown):
    assert shown_name(name) == shown


@dataclasses.dataclass
class Piece:
    name: str
    log: list
    block: threading.Event | None = None
    fault: Exception | None = None

    def moved(self, ahead):
        self.log.append((self.name, ahead))

    def run(self):
        if self.block is not None:
            self.log.append(f"{self.name} runs")
            self.block.wait(20)
        if self.fault is not None:
            raise self.fault
        self.log.append(f"{self.name} done")

    def failed(self, error):
        self.log.append(f"{self.name}: {error}")


def wait_for(entry, log):
    for _ in range(2000):
        if entry in log:
            return
        time.sleep(0.01)
    raise TimeoutError(f"{entry} is not in {log}")


def test_work_is_done_one_at_a_time_in_order_and_a_fault_stops_nobody_else():
    waiting, log, go_on = line.WaitingLine(), [], threading.Event()
    pieces = [
        Piece("a", log, block=go_on, fault=ValueError("broken")),
        *(Piece(name, log) for name in "bcd"),
    ]
    last = Piece("e", log, block=(end := threading.Event()))
    waiting.join(pieces[0])
    wait_for("a runs", log)
    for piece in (*pieces[1:], last):
        waiting.join(piece)
    waiting.leave(pieces[2])
    assert log[-2:] == [("d", 2), ("e", 3)]  # c has left; a, at work, is before them all.
    go_on.set()
    wait_for("e runs", log)
    end.set()
    assert [entry for entry in log if isinstance(entry, str)] == [
        *("a runs", "a: broken", "b done", "d done", "e runs")
    ]


def test_a_full_line_sends_people_away(monkeypatch):
    monkeypatch.setattr(line, "MOST_WAITING", 1)
    waiting, log, go_on = line.WaitingLine(), [], threading.Event()
    waiting.join(Piece("a", log, block=go_on))
    wait_for("a runs", log)
    waiting.join(Piece("b", log))
    with pytest.raises(InputError, match="1 others wait already; try again later"):
        waiting.join(Piece("c", log))
    go_on.set()
