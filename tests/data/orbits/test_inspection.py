import numpy as np
import pytest
from PIL import Image

from o3d_jax.__main__ import main as o3d
from o3d_jax.data.orbits.drawing import BOX_COLOR, FRAME_SIZE, frustum, picture_of_orbit
from o3d_jax.data.orbits.folder import RenderedOrbit, write_orbit
from o3d_jax.geometry.orbits import orbit_poses, pinhole


def ball_orbit(name: str, size: int = 40, at: float = 0.0) -> RenderedOrbit:
    """A disc in the middle of every frame; what is drawn need not be an object."""
    y, x = np.mgrid[:size, :size] + 0.5 - size / 2
    rgba = np.zeros((16, size, size, 4), np.uint8)
    rgba[..., 3] = 255 * ((x - at) ** 2 + y**2 < (size / 5) ** 2)
    return RenderedOrbit(name, rgba, orbit_poses(20.0, np.arange(16) * 22.5, 1.5), 49.1)


@pytest.fixture
def folder(tmp_path):
    for name in ("cropped/0", "cut/0", "sound/0", "sound/1"):
        write_orbit(tmp_path / "in" / name, ball_orbit(name, at=20.0 * (name == "cropped/0")))
    path = tmp_path / "in" / "cut" / "0" / "render_0015.png"
    path.write_bytes(path.read_bytes()[:-20])
    return tmp_path / "in"


def run(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        o3d(["data", "inspect", *map(str, arguments)])
    return stopped.value.code


def test_a_table_a_line_for_each_problem_and_a_status(folder, capsys):
    assert run(folder) == 1
    lines = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: line.split()[1:] for line in lines[1:5]}
    assert table["sound/0"] == ["16", "40", "x", "40", "1.500", "49.1", "20.0", "13", "0"]
    assert table["cropped/0"][-1] == "16"
    assert table["cut/0"] == ["-"] * 6 + ["1"]
    assert [line for line in lines if line.startswith("cropped/0: frame 7 is cropped")]
    assert [line for line in lines if "render_0015.png is damaged" in line]
    assert len(lines) == 1 + 4 + 16 + 1 + 1
    assert lines[-1] == "4 orbits, 2 with problems"


def test_sound_orbits_pass_and_what_they_should_be_can_be_said(folder, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("sound\n")
    assert run(folder, "--ids", tmp_path / "ids.txt", "--radius", "1.5") == 0
    assert run(folder, "--ids", tmp_path / "ids.txt", "--frames", "15") == 1
    assert "sound/0: 16 frames, not 15" in capsys.readouterr().out
    assert run(tmp_path / "nowhere") == 2
    assert "has no rendered orbits" in capsys.readouterr().err


def test_orbits_with_problems_are_drawn_whatever_the_number_of_pictures(folder, tmp_path):
    run(folder, "--out", tmp_path / "out", "--pictures", "0")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["cropped__0.png"]
    run(folder, "--out", tmp_path / "out", "--pictures", "1")
    pictures = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert pictures == ["cropped__0.png", "sound__0.png"]
    with Image.open(tmp_path / "out" / "sound__0.png") as picture:
        assert min(picture.size) > 4 * FRAME_SIZE


def test_a_frustum_is_what_the_camera_sees():
    """Its corners project onto those of the image, at a quarter of the distance."""
    pose = orbit_poses(20.0, np.array([50.0]), 1.5)[0]
    lines = frustum(pose, 49.1)
    assert len(lines) == 8
    far = np.stack([line[1] for line in lines[:4]])
    np.testing.assert_allclose([line[0] for line in lines[:4]], np.tile(pose[:3, 3], (4, 1)))
    local = (far - pose[:3, 3]) @ pose[:3, :3]
    np.testing.assert_allclose(local[:, 2], 0.25 * 1.5)
    seen = local @ pinhole(49.1).T / local[:, 2:]
    np.testing.assert_allclose(seen[:, :2], [[0, 0], [1, 0], [1, 1], [0, 1]], atol=1e-12)


def test_the_box_is_drawn_around_the_object():
    """A thin cube, seen straight from the front: its outlines are two squares, by hand."""
    orbit = ball_orbit("ball", size=64)
    pose = orbit_poses(0.0, np.arange(16) * 22.5, 1.5)
    position = np.zeros((16, 64, 64, 3), np.float32)
    position[:, 31:33, 31:33] = [[[-0.3, -0.2, -0.1], [0.3, 0.2, 0.1]]] * 2
    orbit = orbit._replace(camera_to_world=pose, position=position)
    sheet = picture_of_orbit(orbit)
    top, left = 4 + FRAME_SIZE + 4, 4
    frame = sheet[top : top + FRAME_SIZE, left : left + FRAME_SIZE]
    red = np.abs(frame - np.array(BOX_COLOR) / 255).max(axis=-1) < 0.01
    focal = pinhole(49.1)[0, 0]
    for z in (0.1, -0.1):
        x, y = (FRAME_SIZE * (0.5 + focal * half / (1.5 - z)) for half in (0.3, 0.2))
        around_x, around_y = (slice(round(place) - 1, round(place) + 1) for place in (x, y))
        # On the right edge, a bit above the middle.
        assert red[FRAME_SIZE // 2 - 9, around_x].any()
        assert red[around_y, FRAME_SIZE // 2 + 9].any()  # On the lower edge, right of the middle.
    assert red.sum() < 8 * FRAME_SIZE
