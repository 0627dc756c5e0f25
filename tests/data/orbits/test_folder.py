import errno
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from o3d_jax.data.orbits.folder import find_orbits, read_index, read_orbit, write_orbit
from o3d_jax.errors import InputError
from support.small_sets import random_orbit


def whole_orbit():
    orbit = random_orbit("toys/duck/0", 3, size=9)
    rng = np.random.default_rng(0)
    depth = rng.random((7, 9, 9), np.float32)
    return orbit._replace(depth=depth, position=rng.random((7, 9, 9, 3), np.float32))


def test_an_orbit_comes_back_bit_for_bit(tmp_path):
    for orbit in (whole_orbit(), random_orbit("plain", 1)):
        write_orbit(tmp_path / orbit.name, orbit)
        found = read_orbit(tmp_path / orbit.name)
        assert found.name == orbit.name
        assert found.fov == pytest.approx(orbit.fov, rel=1e-15)  # Radians in the file.
        for one, other in zip(found, orbit, strict=True):
            if isinstance(other, np.ndarray):
                assert one.dtype == other.dtype
                np.testing.assert_array_equal(one, other)
        assert (found.depth is None) == (orbit.depth is None)


def test_the_file_is_what_the_release_reads(tmp_path):
    """Read as RELEASE's loader does, with no code of ours; the camera is one that is known."""
    level = np.diag([1.0, -1.0, -1.0, 1.0])  # OpenCV axes, at azimuth 0: on +z, looking along -z.
    level[2, 3] = 1.5
    orbit = random_orbit("a", 3)
    poses = orbit.camera_to_world.copy()
    poses[0] = level
    write_orbit(tmp_path / "a", orbit._replace(camera_to_world=poses, fov=60.0))
    meta = json.loads((tmp_path / "a" / "meta.json").read_text())
    assert meta["camera_angle_x"] == pytest.approx(np.pi / 3)
    assert len(meta["locations"]) == 7
    blender = np.eye(4)  # y up, looking along -z.
    blender[2, 3] = 1.5
    np.testing.assert_array_equal(meta["locations"][0]["transform_matrix"], blender)
    for location, frame in zip(meta["locations"], orbit.rgba, strict=True):
        with Image.open(tmp_path / "a" / location["frames"][0]["name"]) as image:
            assert image.mode == "RGBA"
            np.testing.assert_array_equal(np.asarray(image), frame)


def test_orbits_are_found_by_name_and_unfinished_ones_are_not(tmp_path):
    for name in ("b/1", "b/0", "a", ".c.123.part"):
        write_orbit(tmp_path / name, random_orbit(name, 0))
    assert find_orbits(tmp_path) == ["a", "b/0", "b/1"]
    with pytest.raises(InputError, match="no rendered orbits"):
        find_orbits(tmp_path / "a" / "nothing")


def test_a_full_disk_leaves_the_old_orbit_or_none(tmp_path, monkeypatch):
    old = random_orbit("a", 0)
    write_orbit(tmp_path / "a", old)
    save = Image.Image.save

    def full(self, path, **options):
        if path.name == "render_0003.png":
            raise OSError(errno.ENOSPC, "No space left on device")
        save(self, path, **options)

    monkeypatch.setattr(Image.Image, "save", full)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="No space"):
            write_orbit(tmp_path / name, random_orbit("new", 1))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    np.testing.assert_array_equal(read_orbit(tmp_path / "a").rgba, old.rgba)


def test_a_rename_that_fails_puts_the_old_orbit_back(tmp_path, monkeypatch):
    old = random_orbit("a", 0)
    write_orbit(tmp_path / "a", old)
    replace, refused = os.replace, []

    def fails(source, target):
        if target == tmp_path / "a" and not refused:
            refused.append(source)
            raise OSError(errno.EIO, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails)
    with pytest.raises(OSError, match="Input/output"):
        write_orbit(tmp_path / "a", random_orbit("new", 1))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    np.testing.assert_array_equal(read_orbit(tmp_path / "a").rgba, old.rgba)


def test_an_orbit_is_replaced_but_nothing_else_is(tmp_path):
    write_orbit(tmp_path / "a", whole_orbit())
    write_orbit(tmp_path / "a", random_orbit("a", 5))
    assert read_orbit(tmp_path / "a").depth is None
    (tmp_path / "a" / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="holds notes.txt"):
        write_orbit(tmp_path / "a", random_orbit("a", 6))
    (tmp_path / "file").write_text("mine")
    with pytest.raises(InputError, match="it is or holds a file"):
        write_orbit(tmp_path / "file", random_orbit("a", 6))


def edit(change):
    """Changes what meta.json holds."""

    def fault(folder: Path):
        meta = json.loads((folder / "meta.json").read_text())
        change(meta)
        (folder / "meta.json").write_text(json.dumps(meta))

    return fault


def pose(change):
    """Changes the matrix of frame 2."""
    return edit(lambda meta: change(meta["locations"][2]["transform_matrix"]))


def mirror(matrix):
    for row in matrix[:3]:
        row[0] *= -1


def scale(matrix):
    for row in matrix[:3]:
        row[:3] = [1.01 * value for value in row[:3]]


def huge(matrix):
    """Of products that are infinite, and sums of these that are no numbers."""
    for row, values in zip(matrix[:3], ((1, 1, 0), (1, -1, 0), (0, 0, 1)), strict=True):
        row[:3] = [1e200 * value for value in values]


def frame_name(name):
    return edit(lambda meta: meta["locations"][2]["frames"][0].update(name=name))


def rewrite_frame(change):
    def fault(folder: Path):
        path = folder / "render_0002.png"
        with Image.open(path) as image:
            changed = change(image)
        changed.save(path)

    return fault


def cut_by(count: int):
    def fault(folder: Path):
        path = folder / "render_0002.png"
        path.write_bytes(path.read_bytes()[:-count])

    return fault


def damaged_maps(folder: Path):
    path = folder / "maps.npz"
    path.write_bytes(path.read_bytes()[:-50])


FAULTS = {
    "no meta.json": (lambda f: (f / "meta.json").unlink(), "meta.json is missing"),
    "not JSON": (lambda f: (f / "meta.json").write_text("{"), "meta.json is damaged"),
    "no locations": (edit(lambda m: m.pop("locations")), "meta.json is not an orbit's"),
    "none at all": (edit(lambda m: m.update(locations=[])), "at least one location"),
    "3 x 4": (pose(lambda m: m.pop()), "transform_matrix"),
    "degrees": (edit(lambda m: m.update(camera_angle_x=49.1)), "camera_angle_x 49.1"),
    "NaN": (pose(lambda m: m[1].__setitem__(3, float("nan"))), "frame 2 has values that are not f"),
    "huge": (pose(huge), "frame 2 is not rigid"),
    "nested": (lambda f: (f / "meta.json").write_text("[" * 10**5), "meta.json is damaged"),
    "angle of 400 digits": (edit(lambda m: m.update(camera_angle_x=10**400)), "is not an orbit's"),
    "mirrored": (pose(mirror), "meta.json: the pose of frame 2 is mirrored"),
    "scaled": (pose(scale), "frame 2 is not rigid"),
    "projective": (pose(lambda m: m[3].__setitem__(0, 0.1)), "frame 2 is not rigid"),
    "absolute": (frame_name("/etc/passwd"), "'/etc/passwd' is not that of a file in"),
    "of no letters": (frame_name("a\0.png"), "'a\\x00.png' is not that of a file in"),
    "of half a letter": (frame_name("\ud800.png"), "'\\ud800.png' is not that of a file in"),
    "above": (frame_name("../x.png"), "'../x.png' is not that of a file in"),
    "missing": (lambda f: (f / "render_0002.png").unlink(), "render_0002.png is missing"),
    "cut short": (cut_by(200), "render_0002.png is damaged"),
    "cut by a byte": (cut_by(1), "render_0002.png is damaged"),
    "empty": (lambda f: (f / "render_0002.png").write_bytes(b""), "render_0002.png is not a read"),
    "no alpha": (rewrite_frame(lambda i: i.convert("RGB")), "render_0002.png is RGB, not RGBA"),
    "size": (rewrite_frame(lambda i: i.resize((8, 9))), "render_0002.png is 8 x 9 pixels"),
    "maps cut short": (damaged_maps, "maps.npz is damaged"),
    "maps of others": (
        lambda f: np.savez(f / "maps.npz", depth=np.zeros((7, 9, 8), np.float32)),
        "depth is float32",
    ),
}


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("orbits") / "healthy"
    write_orbit(folder, whole_orbit())
    return folder


@pytest.mark.parametrize(("fault", "message"), FAULTS.values(), ids=FAULTS)
def test_each_fault_is_one_line_that_names_the_file(healthy, tmp_path, fault, message):
    folder = tmp_path / "broken"
    shutil.copytree(healthy, folder)
    fault(folder)
    with pytest.raises(InputError) as raised:
        read_orbit(folder)
    text = str(raised.value)
    assert message in text
    assert str(folder) in text
    assert "\n" not in text


def test_a_pose_that_is_no_cameras_is_never_written(tmp_path):
    orbit = random_orbit("a", 0)
    mirrored = orbit.camera_to_world.copy()
    mirrored[4, :, 0] *= -1
    with pytest.raises(InputError, match="frame 4 is mirrored"):
        write_orbit(tmp_path / "a", orbit._replace(camera_to_world=mirrored))
    assert not list(tmp_path.iterdir())


def test_the_index_alone_opens_no_image(healthy, tmp_path):
    shutil.copy(healthy / "meta.json", tmp_path)
    index = read_index(tmp_path)
    assert [path.name for path in index.files] == [f"render_{i:04d}.png" for i in range(7)]
