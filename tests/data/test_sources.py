"""Training on rendered orbits: folders of them, TFDS's files, and mixtures with synthetic ones."""

import dataclasses
import itertools
import json
import shutil
import sys
import warnings

import chex
import jax
import numpy as np
import pytest

from o3d_jax.__main__ import main as o3d
from o3d_jax.data.loader import heldout_batch, training_batches
from o3d_jax.data.orbits.build import Build, build
from o3d_jax.data.orbits.folder import find_orbits, read_orbit, write_orbit
from o3d_jax.data.orbits.names import select
from o3d_jax.data.orbits.packed import packed_folder
from o3d_jax.data.sources import open_orbits
from o3d_jax.errors import InputError
from o3d_jax.geometry.orbits import pinhole, relative_poses
from support.small_sets import FRAMES, VIEWS, random_orbit, small_config, white, write_set

OBJECTS = 10


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Frames of the model's size, so that each can be recognized."""
    return write_set(tmp_path_factory.mktemp("sets") / "rendered", OBJECTS, size=16)


@pytest.fixture(scope="module")
def packed(folder):
    build(Build(folder, folder.parent / "packed"))
    return folder.parent / "packed"


def config_of(*folders, batch_size=3, **data):
    source = {"source": "rendered", "rendered": tuple(str(f) for f in folders)}
    return small_config(batch_size=batch_size, **(source | data))


def take(iterator, count):
    return list(itertools.islice(iterator, count))


def assert_equal(one, other):
    chex.assert_trees_all_equal(one, other)


def batches_of(config, count):
    return [loaded.batch for loaded in take(training_batches(config), count)]


def whites_of(folder):
    return np.stack([white(read_orbit(folder / name).rgba) for name in find_orbits(folder)])


def drawn(batch, whites):
    """Index and first frame of each object of a batch, recognized by its input view; -1 if none."""
    gaps = np.abs(batch.images[:, 0, None, None] - whites[None]).max(axis=(-3, -2, -1))
    places = [np.unravel_index(g.argmin(), g.shape) if g.min() < 1e-6 else (-1, -1) for g in gaps]
    return [(int(index), int(first)) for index, first in places]


def test_a_batch_has_the_frames_of_the_folder_and_its_cameras(folder):
    config = config_of(folder)
    whites, names = whites_of(folder), find_orbits(folder)
    batch, objects = next(training_batches(config))
    found = drawn(batch, whites)
    assert objects == tuple(str(folder / names[index]) for index, _ in found)
    for k, (index, first) in enumerate(found):
        frames = [(first + 2 * i) % FRAMES for i in range(VIEWS)]
        np.testing.assert_allclose(batch.images[k], whites[index, frames], atol=1e-6)
        poses = relative_poses(read_orbit(folder / names[index]).camera_to_world[frames])
        np.testing.assert_allclose(batch.cameras.camera_to_world[k], poses, atol=1e-6)
        np.testing.assert_allclose(batch.cameras.intrinsics[k, -1], pinhole(49.1), atol=1e-6)


@pytest.mark.parametrize("size", [16, 24])
def test_packed_orbits_give_the_same_batches_as_their_folder_bit_for_bit(tmp_path, size):
    folder = write_set(tmp_path / "rendered", 5, size)
    build(Build(folder, tmp_path / "packed"))
    one, other = (config_of(place, workers=2) for place in (folder, tmp_path / "packed"))
    assert_equal(batches_of(one, 6), batches_of(other, 6))
    one, other = (small_config(heldout=place) for place in (folder, tmp_path / "packed"))
    assert_equal(heldout_batch(one, 3), heldout_batch(other, 3))


def test_two_passes_have_one_order_and_a_resumed_one_goes_on_exactly(folder, packed):
    for config in (
        config_of(folder),
        config_of(packed, workers=2),
        config_of(folder, packed, source="mixed", shares=(2.0, 1.0, 1.0)),
    ):
        straight = take(training_batches(config), 9)
        assert_equal(straight, take(training_batches(config), 9))
        cut = training_batches(config)
        take(cut, 4)
        state = json.loads(json.dumps(cut.get_state()))
        resumed = training_batches(config)
        take(resumed, 1)
        resumed.set_state(state)
        assert_equal(take(resumed, 5), straight[4:])


def shared_out(config, processes, count):
    """The objects of the first batches, in the order of all processes' rows."""
    parts = np.array_split(range(config.train.batch_size), processes)
    iterators = [training_batches(config, [int(row) for row in rows]) for rows in parts]
    return [sum((next(it).objects for it in iterators), ()) for _ in range(count)]


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_partition_each_epoch_exactly(folder, processes):
    objects = sum(shared_out(config_of(folder, batch_size=4), processes, 5), ())
    epochs = [objects[:OBJECTS], objects[OBJECTS:]]  # The first ends within a batch.
    expected = [str(folder / name) for name in find_orbits(folder)]
    assert sorted(epochs[0]) == sorted(epochs[1]) == expected
    assert epochs[0] != epochs[1]


def test_processes_share_out_mixtures_as_one_has_them(folder):
    config = config_of(folder, source="mixed", shares=(1.0, 3.0), batch_size=4)
    alone = shared_out(config, 1, 10)
    assert shared_out(config, 2, 10) == shared_out(config, 4, 10) == alone
    assert sum(name.startswith("synthetic") for objects in alone for name in objects) == 10


def test_sources_are_mixed_by_their_shares_and_shuffled_apart(folder):
    whites = whites_of(folder)
    config = config_of(folder, source="mixed", shares=(1.0, 3.0), batch_size=4)
    found = sum((drawn(b, whites) for b in batches_of(config, 10)), [])
    assert sum(index >= 0 for index, _ in found) == 30
    epoch = [index for index, _ in found if index >= 0][:OBJECTS]
    assert sorted(epoch) == list(range(OBJECTS))
    twice = config_of(folder, folder, batch_size=2)
    pairs = sum((drawn(b, whites) for b in batches_of(twice, OBJECTS)), [])
    assert pairs[::2] != pairs[1::2]


def test_heldout_objects_are_spread_over_all_names_from_fixed_frames(folder):
    config = small_config(heldout=folder)
    whites = whites_of(folder)
    found = drawn(heldout_batch(config, 4), whites)
    assert [index for index, _ in found] == [0, 2, 5, 7]  # 0, 2.5, 5 and 7.5 of 10.
    assert len({first for _, first in found}) > 1
    assert found == drawn(heldout_batch(dataclasses.replace(config, seed=3), 4), whites)
    with pytest.raises(InputError, match="10 orbits, fewer than the 11"):
        heldout_batch(config, 11)


def test_where_kinds_are_mixed_the_first_half_of_heldout_objects_is_synthetic(folder, tmp_path):
    write_set(tmp_path, 2, kind="another", size=16)
    config = small_config(source="mixed", rendered=(str(tmp_path),), heldout=folder)
    mixed, synthetic = heldout_batch(config, 5), heldout_batch(small_config(), 5)
    assert_equal(*(jax.tree.map(lambda a: a[:3], batch) for batch in (mixed, synthetic)))
    found = drawn(jax.tree.map(lambda a: a[3:], mixed), whites_of(folder))
    assert [index for index, _ in found] == [0, 5]
    nowhere = small_config(source="mixed", rendered=(str(tmp_path),))
    assert_equal(heldout_batch(nowhere, 5), synthetic)  # Without a folder all are.


def test_ids_select_objects_by_name_path_or_part(tmp_path):
    names = ["000-01__abc/0", "000-01__abc/1", "000-02/def/0", "duck", "goose/0", "g__a__b/0"]
    ids = tmp_path / "ids.txt"
    for text, expected in {
        "abc": [0, 1],
        "000-02/def\n\n# goose": [2],
        "000-01/abc/1\nduck\nmissing": [1, 3],
        "000-01__abc\r\n goose ": [0, 1, 4],
        "a__b": [5],
    }.items():
        ids.write_text(text)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert select(names, ids) == [names[i] for i in expected]
        said = [str(warning.message) for warning in caught]
        assert len(said) == ("missing" in text)
        assert not said or "1 of 3 ids" in said[0] and "missing" in said[0]
    assert select(names, None) == names
    ids.write_text("ab\nbc\n0")
    with pytest.raises(InputError, match="lists none of the 6 orbits"):
        select(names, ids)
    with pytest.raises(InputError, match="no readable list"):
        select(names, tmp_path / "absent.txt")


def test_both_kinds_of_folder_select_the_same(folder, packed, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("object07\nobject02/0\n")
    one, other = (open_orbits(place, small_config(), ids) for place in (folder, packed))
    assert len(one) == len(other) == 2
    for i, name in enumerate(("object02/0", "object07/0")):
        assert one[i].name.endswith(name)
        assert other[i].name.endswith(name)
        rgba = read_orbit(folder / name).rgba
        for orbit in (one[i], other[i]):
            np.testing.assert_array_equal(orbit.read(np.array([5, 1])), rgba[[5, 1]])


def test_the_configs_ids_are_what_is_trained_on_and_not_what_is_held_out(folder, tmp_path):
    (tmp_path / "ids.txt").write_text("object07\nobject02\n")
    heldout = write_set(tmp_path / "heldout", 2, size=16)  # Of objects 0 and 1.
    config = config_of(folder, ids=tmp_path / "ids.txt", heldout=heldout)
    whites = whites_of(folder)
    trained = sum((drawn(batch, whites) for batch in batches_of(config, 2)), [])
    assert {index for index, _ in trained} == {2, 7}
    assert [index for index, _ in drawn(heldout_batch(config, 2), whites)] == [0, 1]


@pytest.mark.parametrize("pack", [False, True])
def test_held_out_objects_that_are_trained_on_are_refused_by_name(folder, packed, tmp_path, pack):
    heldout = write_set(tmp_path / "heldout", 1, kind="another")
    training_batches(config_of(packed if pack else folder, heldout=heldout))
    for name in ("object08/1", "object04/3"):  # Other orbits of objects that are trained on.
        write_orbit(heldout / name, random_orbit(name, 3))
    if pack:
        build(Build(heldout, tmp_path / "heldout-packed"))
        heldout = tmp_path / "heldout-packed"
    config = config_of(packed if pack else folder, heldout=heldout)
    with pytest.raises(InputError, match=r"has object04, which .* has too \(2 such.*data.ids"):
        training_batches(config)
    (tmp_path / "ids.txt").write_text("object08\nobject02\n")
    data = dataclasses.replace(config.data, ids=tmp_path / "ids.txt")
    with pytest.raises(InputError, match=r"has object08, which .* has too \(1 such"):
        training_batches(dataclasses.replace(config, data=data))
    (tmp_path / "ids.txt").write_text("object02\n")
    training_batches(dataclasses.replace(config, data=data))


def test_a_pack_has_its_names_in_a_file_and_no_record_is_read_for_them(folder, packed, tmp_path):
    (tmp_path / "ids.txt").write_text("object07\nobject02\n")
    pack = shutil.copytree(packed, tmp_path / "packed")
    names = packed_folder(pack) / "names.txt"
    assert names.read_text().splitlines() == find_orbits(folder)
    (found,) = open_orbits(pack, small_config(), tmp_path / "ids.txt").names[1:]
    assert found == "object07/0"
    names.write_text(names.read_text().replace("object07", "renamed!"))
    with pytest.warns(UserWarning, match="object07"):
        assert len(open_orbits(pack, small_config(), tmp_path / "ids.txt")) == 1
    names.write_text("one\ntwo\n")
    with pytest.raises(InputError, match="names.txt has 2 lines, not one for each of 10 orbits; d"):
        open_orbits(pack, small_config(), tmp_path / "ids.txt")
    names.unlink()  # As in sets of before there was such a file.
    old = open_orbits(pack, small_config(), tmp_path / "ids.txt")
    assert old.names == ["object02/0", "object07/0"] and old[1].name.endswith("object07/0")


def test_the_newest_version_is_read_and_an_unfinished_one_is_not(tmp_path):
    for name in ("9.2.0", "10.0.0", "incomplete.AB_11.0.0"):
        (tmp_path / "orbit_renders" / name).mkdir(parents=True)
        (tmp_path / "orbit_renders" / name / "features.json").touch()
    newest = tmp_path / "orbit_renders" / "10.0.0"
    assert packed_folder(tmp_path) == packed_folder(newest) == newest
    assert packed_folder(tmp_path / "orbit_renders") is None


def with_one(tmp_path, **changes):
    """A set whose second orbit is another."""
    root = write_set(tmp_path / "set", 3)
    orbit = random_orbit("object01/0", 9)._replace(**changes)
    write_orbit(root / "object01" / "0", orbit)
    return root


def far(orbit, radius):
    poses = orbit.camera_to_world.copy()
    poses[4, :3, 3] *= radius / 1.5
    return poses


CAMERA_FAULTS = {
    "frames": (
        {"rgba": random_orbit("", 9).rgba[:6], "camera_to_world": np.tile(np.eye(4), (6, 1, 1))},
        "has 6 frames, not data.frames_per_orbit 7",
    ),
    "radius": (
        {"camera_to_world": far(random_orbit("", 9), 1.6)},
        "a camera is 1.6 from the origin, not camera.radius 1.5",
    ),
    "field of view": ({"fov": 39.6}, "its field of view is 39.6 degrees, not camera.fov 49.1"),
}


@pytest.mark.parametrize(("changes", "message"), CAMERA_FAULTS.values(), ids=CAMERA_FAULTS)
def test_other_cameras_than_the_configs_are_refused_before_training(tmp_path, changes, message):
    with pytest.raises(InputError, match=f"object01/0:? .*{message}"):
        training_batches(config_of(with_one(tmp_path, **changes)))


@pytest.mark.parametrize("name", ["radius", "field of view"])
def test_other_cameras_in_packed_orbits_are_refused_when_drawn(tmp_path, name):
    changes, message = CAMERA_FAULTS[name]
    build(Build(with_one(tmp_path, **changes), tmp_path / "packed"))
    with pytest.raises(InputError, match=f"object01/0:? .*{message}"):
        take(training_batches(config_of(tmp_path / "packed")), 2)


def test_a_bad_pose_is_refused_before_training_by_the_files_name(tmp_path):
    root = write_set(tmp_path, 2)
    path = root / "object01" / "0" / "meta.json"
    meta = json.loads(path.read_text())
    meta["locations"][3]["transform_matrix"][0][0] = float("nan")
    path.write_text(json.dumps(meta))
    with pytest.raises(InputError, match=f"{path}: the pose of frame 3 has values that are not f"):
        training_batches(config_of(root))


def test_a_damaged_frame_stops_training_by_the_files_name(tmp_path):
    root = write_set(tmp_path, 2)
    for path in (root / "object01" / "0").glob("*.png"):
        path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(InputError, match=r"object01/0/render_000\d.png is damaged"):
        take(training_batches(config_of(root)), 2)


def test_frames_below_the_models_size_are_refused(tmp_path):
    root = write_set(tmp_path, 1, size=12)
    with pytest.raises(InputError, match="frames are 12 x 12 pixels; model.image_size 16"):
        next(training_batches(config_of(root, batch_size=1)))


def test_more_processes_than_objects_share_them_out(folder):
    objects = sum(shared_out(config_of(folder, batch_size=20), 20, 1), ())
    assert sorted(objects) == sorted([str(folder / name) for name in find_orbits(folder)] * 2)


def test_broken_orbits_are_left_out_of_the_pack_and_told(tmp_path, caplog):
    root = write_set(tmp_path / "set", 4)
    (root / "object00" / "0" / "render_0004.png").unlink()
    write_orbit(root / "object02" / "0", random_orbit("object02/0", 5, size=10))
    built = build(Build(root, tmp_path / "packed"))
    assert (built.found, built.packed) == (4, 2)
    assert "object00/0/render_0004.png is missing" in caplog.text
    assert "object02/0 has frames of shape (7, 10, 10, 4)" in caplog.text
    orbits = open_orbits(tmp_path / "packed", small_config())
    assert [orbits[i].name.split()[-1] for i in range(2)] == ["object01/0", "object03/0"]
    assert (built.folder / "names.txt").read_text() == "object01/0\nobject03/0\n"


def test_an_odd_orbit_that_comes_first_does_not_decide_what_is_packed(tmp_path, caplog):
    root = write_set(tmp_path / "set", 4)
    write_orbit(root / "object00" / "0", random_orbit("object00/0", 5, frames=6))
    built = build(Build(root, tmp_path / "packed"))
    assert (built.found, built.packed) == (4, 3)
    assert "object00/0 has frames of shape (6, 24, 24, 4), others (7, 24, 24, 4)" in caplog.text


def test_a_pack_is_never_overwritten_and_one_of_nothing_never_made(packed, folder, tmp_path):
    with pytest.raises(InputError, match="1.0.0 exists already"):
        build(Build(folder, packed))
    root = write_set(tmp_path / "set", 1)
    shutil.rmtree(root / "object00" / "0")
    with pytest.raises(InputError, match="has no rendered orbits"):
        build(Build(root, tmp_path / "packed"))
    write_set(root, 1)
    (root / "object00" / "0" / "render_0000.png").write_bytes(b"")
    with pytest.raises(InputError, match="none of the 1 orbits .*render_0000.png is not a read"):
        build(Build(root, tmp_path / "packed"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"rendered": ("a",)}, "does not go with"),
        ({"source": "rendered"}, "does not go with"),
        ({"source": "mixed", "rendered": ("a",), "shares": (1.0,)}, "2 numbers above 0"),
        ({"source": "rendered", "rendered": ("a",), "shares": (0.0,)}, "1 numbers above 0"),
    ],
)
def test_contradictions_in_the_config_are_refused(data, message):
    with pytest.raises(ValueError, match=message):
        small_config(**data)


def run_build(*arguments) -> int:
    with pytest.raises(SystemExit) as stopped:
        o3d(["data", "build", *map(str, arguments)])
    return stopped.value.code


def test_the_command_says_what_it_packed_and_its_status_whether_all(folder, tmp_path, capsys):
    (tmp_path / "ids.txt").write_text("object03\nobject04\n")
    assert run_build(folder, tmp_path / "a", "--ids", tmp_path / "ids.txt") == 0
    assert capsys.readouterr().out == f"{tmp_path}/a/orbit_renders/1.0.0: 2 of 2 orbits\n"
    root = write_set(tmp_path / "set", 3)
    (root / "object01" / "0" / "render_0000.png").unlink()
    assert run_build(root, tmp_path / "b") == 1
    assert capsys.readouterr().out == f"{tmp_path}/b/orbit_renders/1.0.0: 2 of 3 orbits\n"
    assert run_build(root, tmp_path / "b") == 2


def test_a_full_disk_and_a_missing_package_are_one_line(folder, tmp_path, monkeypatch, capsys):
    def full(self, **options):
        raise RuntimeError("Failed to finalize: write() failed: No space left on device; x")

    with monkeypatch.context() as patch:
        patch.setattr("o3d_jax.data.orbits.packing.OrbitRenders.download_and_prepare", full)
        assert run_build(folder, tmp_path) == 2
    assert f"error: {tmp_path}: No space left on device; make room" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "apache_beam", None)
        assert run_build(folder, tmp_path, "--beam", "runner=DirectRunner") == 2
    assert "error: --beam needs Apache Beam; pip install" in capsys.readouterr().err
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "tensorflow_datasets", None)
        assert run_build(folder, tmp_path) == 2
        assert "pip install 'o3d-jax[data]'" in capsys.readouterr().err
        with pytest.raises(InputError, match=r"pip install 'o3d-jax\[data\]'"):
            pack = tmp_path / "orbit_renders" / "1.0.0"
            pack.mkdir(parents=True)
            (pack / "features.json").touch()
            open_orbits(tmp_path, small_config())
