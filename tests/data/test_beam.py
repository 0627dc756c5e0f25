"""Pipelines of Apache Beam do what one process does: rendering models, and packing orbits."""

import contextlib

import numpy as np
import pytest

pytest.importorskip("apache_beam", reason="needs the extra [beam], which is large")

from o3d_jax.data.meshes.orbits import OrbitPlan
from o3d_jax.data.meshes.rendering import RenderOrbits, render_orbits
from o3d_jax.data.orbits.build import Build, build
from o3d_jax.data.sources import open_orbits
from support.gltf_files import cube
from support.small_sets import small_config, write_set

PLAN = OrbitPlan(size=16, frames=3)


def test_models_rendered_by_beam_are_those_rendered_by_processes(tmp_path, capsys):
    models = tmp_path / "models"
    models.mkdir()
    (models / "red.glb").write_bytes(cube().glb())
    (models / "green.glb").write_bytes(cube(color=(0, 0.6, 0, 1)).glb())
    (models / "empty.glb").write_bytes(b"")
    for runner in ("processes", "beam"):
        order = RenderOrbits(models, tmp_path / runner, PLAN, workers=1, runner=runner, sheet=0)
        assert render_orbits(order) == 1
        said = capsys.readouterr().out
        assert "rendered          2\n" in said and "empty: empty.glb is empty" in said
    files = [
        sorted(p.relative_to(tmp_path / runner) for p in (tmp_path / runner).rglob("*"))
        for runner in ("processes", "beam")
    ]
    assert files[0] == files[1]
    assert sum(file.suffix == ".png" for file in files[0]) == 12
    for file in files[0]:
        one, other = tmp_path / "processes" / file, tmp_path / "beam" / file
        assert one.is_dir() or one.read_bytes() == other.read_bytes(), file


def test_orbits_packed_by_beam_are_those_packed_here(tmp_path):
    root = write_set(tmp_path / "set", 5, size=16)
    (root / "object02" / "0" / "render_0004.png").unlink()
    here = build(Build(root, tmp_path / "here"))
    with contextlib.chdir(tmp_path):  # Where it may leave files of its own.
        packed = build(Build(root, tmp_path / "beam", beam=("runner=DirectRunner",)))
    assert (packed.found, packed.packed) == (here.found, here.packed) == (5, 4)
    names = [f"object{i:02d}/0" for i in (0, 1, 3, 4)]
    assert (packed.folder / "names.txt").read_text().splitlines() == names
    config = small_config()
    one, other = (open_orbits(built.folder, config) for built in (here, packed))
    for i, name in enumerate(names):
        assert one[i].name.endswith(name) and other[i].name.endswith(name)
        np.testing.assert_array_equal(one[i].camera_to_world, other[i].camera_to_world)
        np.testing.assert_array_equal(one[i].read(np.arange(7)), other[i].read(np.arange(7)))
