"""The command that renders folders of models: what it writes, refuses and survives."""

import errno
import json
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from support.gltf_files import cube

PLAN = {"size": 16, "frames": 3}


@pytest.fixture
def models(tmp_path):
    """A folder with two good models and a broken one."""
    root = tmp_path / "models"
    (root / "sub").mkdir(parents=True)
    (root / "red.glb").write_bytes(cube().glb())
    (root / "sub" / "green.glb").write_bytes(cube(color=(0, 0.6, 0, 1)).glb())
    (root / "sub" / "empty.glb").write_bytes(b"")
    return root


@pytest.fixture
def run(models, tmp_path, monkeypatch, capsys):
    """Runs the command in this process; returns its status, output and complaints."""
    from o3d_jax.data.meshes import rendering as tool
    from o3d_jax.data.meshes.jobs import work
    from o3d_jax.data.meshes.orbits import OrbitPlan
    from o3d_jax.errors import exit_on_input_error

    monkeypatch.setattr(tool, "run_in_processes", lambda jobs, workers: map(work, jobs))

    def run(plan=None, models=models, out=tmp_path / "out", **options):
        status = None
        try:
            with exit_on_input_error():
                order = OrbitPlan(**{**PLAN, **(plan or {})})
                status = tool.render_orbits(tool.RenderOrbits(models, out, order, **options))
        except SystemExit as exit:
            status = exit.code
        said = capsys.readouterr()
        return status, said.out, said.err

    return run


def job(models, tmp_path, name="red", **options):
    from o3d_jax.data.meshes.jobs import RenderJob
    from o3d_jax.data.meshes.orbits import OrbitPlan

    plan = OrbitPlan(**{**PLAN, **options.pop("plan", {})})
    return RenderJob(
        name, models / f"{name}.glb", tmp_path / "out", plan, 2**20, 60.0, None
    )._replace(**options)


def test_a_broken_model_is_reported_and_the_others_are_rendered(run, tmp_path):
    from o3d_jax.data.orbits.folder import read_orbit

    status, out, err = run(plan={"maps": True})
    assert status == 1
    assert "rendered          2\n" in out and "failed            1\n" in out
    assert "sub__empty: empty.glb is empty" in out and "sub__empty" in err
    names = (tmp_path / "out" / "train.txt").read_text().split()
    assert names == ["red/0", "red/1", "sub__green/0", "sub__green/1"]
    assert (tmp_path / "out" / "failures.txt").read_text().startswith("sub__empty: ")
    assert not (tmp_path / "out" / "sub__empty").exists()
    orbit = read_orbit(tmp_path / "out" / "sub__green" / "1")
    assert orbit.name == "sub__green/1" and orbit.rgba.shape == (3, 16, 16, 4)
    middle = orbit.rgba[0, 8, 8].astype(int)
    assert middle[3] == 255 and middle[1] > middle[0] + 80 and middle[0] == middle[2]
    assert 1.0 < orbit.depth[0, 8, 8] < 1.5 and np.abs(orbit.position).max() < 0.6
    assert (tmp_path / "out" / "contact_sheet.png").stat().st_size > 1000


def test_what_is_drawn_but_not_as_its_owner_thinks_is_said_once_in_the_summary(run, models):
    (models / "sub" / "empty.glb").unlink()
    faces = "usemtl stone\nf 1 2 3\nusemtl wood\nf 1 3 2\nusemtl stone\nf 3 2 1\n"
    (models / "blue.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\n" + faces)
    status, out, err = run()
    assert status == 0 and "rendered          3\n" in out and "failed            0\n" in out
    said = "  blue: materials 'stone', 'wood' are in none of its libraries; drawn white\n"
    assert out.endswith(said) and out.count("blue") == 1 and "blue" not in err
    assert "there before      3\n" in run()[1]


def test_meta_json_is_the_releases(run, models, tmp_path):
    (models / "sub" / "empty.glb").unlink()
    assert run(plan={"radius": 1.7417, "fov": 39.598, "elevation": (10.0, 10.0)})[0] == 0
    folder = tmp_path / "out" / "red" / "0"
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["camera_angle_x"] == pytest.approx(np.deg2rad(39.598))
    pose = np.array(meta["locations"][0]["transform_matrix"])
    # Blender's axes: the camera's z points away from the object, its y up.
    e = np.deg2rad(10)
    np.testing.assert_allclose(pose[:3, 3], 1.7417 * np.array([0, np.sin(e), np.cos(e)]), atol=1e-9)
    np.testing.assert_allclose(pose[:3, 2], [0, np.sin(e), np.cos(e)], atol=1e-9)
    np.testing.assert_allclose(pose[:3, 1], [0, np.cos(e), -np.sin(e)], atol=1e-9)
    assert (folder / meta["locations"][2]["frames"][0]["name"]).is_file()


def test_elevations_depend_on_name_and_seed_alone():
    from o3d_jax.data.meshes.orbits import OrbitPlan

    plan = OrbitPlan()
    drawn = np.array([plan.elevations(f"object{i}") for i in range(500)])
    np.testing.assert_array_equal(drawn[7], OrbitPlan(size=64).elevations("object7"))
    assert np.abs(drawn - np.roll(drawn, 1, axis=0)).min() > 0
    assert (
        np.abs(drawn - [OrbitPlan(seed=1).elevations(f"object{i}") for i in range(500)]).min() > 0
    )
    assert drawn.min() >= -5 and drawn.max() <= 30
    # Evenly: the mean of 1000 draws from 35 degrees has a deviation of 0.32.
    assert drawn.mean() == pytest.approx(12.5, abs=1.2)
    assert abs(np.corrcoef(drawn.T)[0, 1]) < 0.15  # The two orbits of an object: 3 deviations.


def test_a_model_may_fill_the_cube_or_the_view(models):
    from o3d_jax.data.meshes.orbits import OrbitPlan, render_model

    cube_plan = OrbitPlan(**PLAN, fit="cube", radius=4.0, maps=True)
    reach = [
        np.abs(o.position).max()
        for o in render_model(models / "red.glb", "a", cube_plan, 2**20).orbits
    ]
    assert max(reach) == pytest.approx(1, abs=1e-3)
    view = OrbitPlan(**{**PLAN, "size": 64}, radius=1.7417, fov=39.598)
    for orbit in render_model(models / "red.glb", "a", view, 2**20).orbits:
        alpha = orbit.rgba[..., 3]
        border = [alpha[:, 0], alpha[:, -1], alpha[:, :, 0], alpha[:, :, -1]]
        assert not np.any(border)  # Nothing is cropped,
        assert alpha.any(axis=(0, 2)).sum() > 0.7 * 64  # nor much room wasted.


def test_rendering_twice_gives_the_same_bytes(run, tmp_path):
    for out in ("a", "b"):
        run(out=tmp_path / out)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.png"))
    assert len(files) == 13
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_second_run_mends_what_is_partial_and_leaves_the_rest(run, tmp_path):
    run()
    out = tmp_path / "out"
    before = {p: p.stat().st_mtime_ns for p in out.rglob("render_*.png")}
    (out / "red" / "1" / "render_0002.png").unlink()
    (out / "sub__green" / "0" / "meta.json").write_text("{")
    status, said, _ = run()
    assert status == 1 and "rendered          2\n" in said  # The broken one fails again.
    assert len(list(out.rglob("render_*.png"))) == len(before)
    before = {p: p.stat().st_mtime_ns for p in out.rglob("render_*.png")}
    assert "there before      2\n" in run()[1]
    assert before == {p: p.stat().st_mtime_ns for p in out.rglob("render_*.png")}
    for cut in (0, -20):
        frame = out / "red" / "0" / "render_0001.png"
        frame.write_bytes(frame.read_bytes()[:cut])
        assert "there before      1\n" in run()[1]
    (out / "red" / f".0.{os.getpid()}.part").mkdir()  # Of a process that was killed.
    (out / "red" / "0" / "meta.json").unlink()
    assert "there before      1\n" in run()[1]
    path = out / "sub__green" / "1" / "meta.json"
    meta = json.loads(path.read_text())
    path.write_text(json.dumps({**meta, "locations": meta["locations"][:-1]}))
    assert "there before      1\n" in run()[1]  # 2 of 3 frames.
    assert "there before      2\n" in run()[1]


def test_images_of_other_settings_do_not_mix(run):
    run()
    status, _, err = run(plan={"size": 32})
    assert status == 2 and "rendered with size 16, not 32" in err and err.count("\n") == 1
    assert run(plan={"seed": 3})[0] == 2


def test_names_never_leave_the_folder_of_results(run, models, tmp_path):
    good = cube().glb()
    (models / "...glb").write_bytes(good)  # Without suffix: "..".
    (models / "a\\b.glb").write_bytes(good)
    (models / "line\nbreak.glb").write_bytes(good)
    (models / ("long" * 60 + ".glb")).write_bytes(good)
    (models / "red.obj").write_text("v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n")
    (tmp_path / "elsewhere.glb").write_bytes(good)
    (models / "link.glb").symlink_to(tmp_path / "elsewhere.glb")
    (models / "nowhere.glb").symlink_to(tmp_path / "not there")
    (models / ".hidden").mkdir()
    (models / ".hidden" / "x.glb").write_bytes(good)
    status, out, _ = run()
    assert status == 1 and "rendered          2\n" in out and "failed            8\n" in out
    assert "red.obj: red.glb has the same name" in out
    assert out.count("not fit for a folder") == 3
    assert "outside the models' folder" in out and "leads nowhere" in out and "200 bytes" in out
    made = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("meta.json")}
    assert made == {"out"}
    objects = {p.relative_to(tmp_path / "out").parts for p in tmp_path.rglob("meta.json")}
    assert {parts[0] for parts in objects} == {"red", "sub__green"}


def test_ids_choose_objects(run, tmp_path):
    ids = tmp_path / "ids.txt"
    ids.write_text("sub__green\n\n")
    assert run(ids=ids)[0] == 0
    assert (tmp_path / "out" / "train.txt").read_text() == "sub__green/0\nsub__green/1\n"
    ids.write_text("sub__green\nsub/red\n")
    status, _, err = run(ids=ids)
    assert status == 2 and "'sub/red'" in err
    ids.write_text("# Another part of the set.\nred\n")
    assert run(ids=ids)[0] == 0
    listed = (tmp_path / "out" / "train.txt").read_text().split()
    assert listed == ["red/0", "red/1", "sub__green/0", "sub__green/1"]
    ids.write_text("green\n")  # A bare id.
    assert "there before      1\n" in run(ids=ids)[1]


def test_what_cannot_be_is_refused_in_one_line(run, models, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    empty = tmp_path / "none"
    empty.mkdir()
    for options, words in (
        ({"models": tmp_path / "not there"}, "no folder"),
        ({"models": empty}, "has no .glb"),
        ({"out": file}, "File exists"),
        ({"plan": {"size": 4}}, "--size 4"),
        ({"plan": {"elevation": (30.0, -5.0)}}, "--elevation"),
        ({"plan": {"fit": "cube"}}, "--fit view"),
        ({"workers": 0}, "--workers 0"),
        ({"ids": tmp_path / "not there"}, "list of ids"),
        ({"renderer": "blender", "plan": {"maps": True}}, "--maps"),
        ({"renderer": "blender", "blender": tmp_path / "python"}, "does not run"),
        ({"renderer": "blender", "blender": Path("/bin/false")}, "cannot import bpy"),
    ):
        status, _, err = run(**options)
        assert status == 2 and words in err and err.count("\n") == 1, (options, err)


def test_large_files_are_refused_unread(models, tmp_path):
    from o3d_jax.data.meshes.jobs import work

    huge = models / "huge.glb"
    with huge.open("wb") as file:
        file.truncate(2**31)  # Sparse: takes no room.
    start = time.monotonic()
    outcome = work(job(models, tmp_path, "huge"))
    assert "2,048 MiB" in outcome.fault and "--max-megabytes" in outcome.fault
    assert time.monotonic() - start < 1


def test_a_model_that_takes_too_long_is_given_up(models, tmp_path, monkeypatch):
    from o3d_jax.data.meshes import jobs as render_jobs

    assert render_jobs.work(job(models, tmp_path)).fault == ""
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0
    monkeypatch.setattr(render_jobs, "_draw", lambda job: time.sleep(30))
    outcome = render_jobs.work(job(models, tmp_path, time_limit=0.1))
    assert "more than 0.1 s" in outcome.fault


class OfNoKnownKind(Exception):
    """What nobody has thought of."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ZeroDivisionError("in the reader"), "ZeroDivisionError: in the reader"),
        (ModuleNotFoundError("No module named 'x'"), "ModuleNotFoundError: No module named 'x'"),
        (OfNoKnownKind("at all"), "OfNoKnownKind: at all"),
        (RecursionError("too deep"), "RecursionError: too deep"),
        (OSError("image file is truncated"), "OSError: image file is truncated"),
        (OSError(errno.ELOOP, "Too many links"), f"OSError: [Errno {errno.ELOOP}] Too many links"),
    ],
)
def test_whatever_one_model_raises_is_its_failure_alone(run, monkeypatch, error, words):
    from o3d_jax.data.meshes import jobs as render_jobs

    draw = render_jobs._draw

    def fail(job):
        if job.name == "red":
            raise error
        return draw(job)

    monkeypatch.setattr(render_jobs, "_draw", fail)
    status, out, _ = run()
    assert status == 1 and f"red: {words}\n" in out and "rendered          1\n" in out


def test_a_full_disk_while_a_model_is_drawn_ends_the_run(run, monkeypatch):
    from o3d_jax.data.meshes import jobs as render_jobs

    def fail(job):
        raise OSError(errno.ENOSPC, "No space left on device", "/scratch/task.json")  # Blender's.

    monkeypatch.setattr(render_jobs, "_draw", fail)
    status, _, err = run()
    assert status == 2 and "No space left on device" in err


@pytest.mark.parametrize("kind", [Exception, BaseException])
def test_the_time_limit_passes_readers_that_swallow_what_they_can(
    models, tmp_path, monkeypatch, kind
):
    from o3d_jax.data.meshes import jobs as render_jobs

    def swallow(job):
        try:
            time.sleep(1)
        except kind:
            pass
        time.sleep(1)

    monkeypatch.setattr(render_jobs, "AGAIN", 0.1)
    monkeypatch.setattr(render_jobs, "_draw", swallow)
    assert "more than 0.1 s" in render_jobs.work(job(models, tmp_path, time_limit=0.1)).fault
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_a_full_disk_ends_the_run_and_leaves_no_half_orbit(run, models, tmp_path, monkeypatch):
    from o3d_jax.data.orbits import folder as orbits

    def full(folder, orbit):
        (folder / "render_0000.png").write_bytes(b"some")
        raise OSError(errno.ENOSPC, "No space left on device")  # Of a write: it names no file.

    monkeypatch.setattr(orbits, "_write_files", full)
    status, _, err = run()
    assert status == 2
    assert err.endswith(
        f"{tmp_path / 'out'}: No space left on device; make room, or choose a place "
        "on another disk\n"
    )
    assert not list((tmp_path / "out").rglob("render_*.png"))


def die_if_told(job):
    from o3d_jax.data.meshes.jobs import Outcome

    if job.name == "killer":
        os.kill(os.getpid(), signal.SIGKILL)
    return Outcome(job.name, "", 1.0, 2.0)


def test_a_process_that_dies_costs_its_model_only(models, tmp_path):
    from o3d_jax.data.meshes.jobs import run_in_processes

    names = ["a", "killer", "b", "c", "d"]
    jobs = [job(models, tmp_path, name) for name in names]
    outcomes = {o.name: o.fault for o in run_in_processes(jobs, 1, die_if_told)}
    assert sorted(outcomes) == sorted(names)
    assert "killed" in outcomes.pop("killer")
    assert not any(outcomes.values())


def test_a_process_that_dies_while_outcomes_are_looked_at_costs_its_model_only(models, tmp_path):
    from o3d_jax.data.meshes.jobs import run_in_processes

    names = ["a", "killer", *(f"n{i}" for i in range(8))]
    outcomes = {}
    for outcome in run_in_processes([job(models, tmp_path, n) for n in names], 2, die_if_told):
        time.sleep(0.3)
        outcomes[outcome.name] = outcome.fault
    assert sorted(outcomes) == sorted(names)
    assert [name for name, fault in outcomes.items() if fault] == ["killer"]


def test_beam_is_asked_for_by_name(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    status, _, err = run(runner="beam")
    assert status == 2 and "pip install apache-beam" in err


def test_blender_gets_the_same_cameras_and_limits(tmp_path):
    from o3d_jax.data.meshes.blender import Blender, blender_command, task_of
    from o3d_jax.data.meshes.orbits import OrbitPlan

    plan = OrbitPlan(size=64, frames=4)
    task = task_of(Path("x.glb"), "x", plan, 8, tmp_path)
    assert json.loads(json.dumps(task)) == task
    assert Path(str(task["model"])).is_absolute()
    poses = np.array(task["poses"]).reshape(2, 4, 4, 4)
    np.testing.assert_allclose(poses @ np.diag([1.0, -1, -1, 1]), plan.poses("x"), atol=1e-12)
    assert task["ball"] == pytest.approx(0.96 * 1.5 * np.sin(np.deg2rad(49.1 / 2)))
    command = blender_command(Blender(Path("/opt/bpy/bin/python"), 8), tmp_path / "task.json")
    assert command[0] == "/opt/bpy/bin/python" and Path(command[1]).is_file()
    assert command[2] == str(tmp_path / "task.json")


def test_blender_is_not_started_on_a_model_that_refers_to_elsewhere(models, tmp_path, monkeypatch):
    from o3d_jax.data.meshes import blender as render_blender
    from o3d_jax.data.meshes.jobs import work

    made = cube()
    made.tree["images"] = [{"uri": "../secret.png"}]  # Of no material.
    (models / "red.glb").write_bytes(made.glb())
    assert work(job(models, tmp_path)).fault == ""  # The software renderer never opens it.
    started = []
    monkeypatch.setattr(render_blender, "blender_command", lambda *task: started.append(task))
    blender = render_blender.Blender(Path(sys.executable), 8)
    outcome = work(job(models, tmp_path, blender=blender))
    assert "'../secret.png', outside its folder" in outcome.fault and not started


def test_the_command_line_has_flat_options(models, tmp_path, capsys):
    from o3d_jax.__main__ import main as o3d
    from o3d_jax.cli import parse
    from o3d_jax.data.meshes import rendering as tool

    arguments = [str(models), str(tmp_path / "out"), "--size", "32", "--elevation", "0", "10"]
    order = parse(tool.RenderOrbits, [*arguments, "--maps", "--workers", "3"])
    assert (order.plan.size, order.plan.elevation, order.plan.maps) == (32, (0.0, 10.0), True)
    assert (order.workers, order.models) == (3, models)
    with pytest.raises(SystemExit) as exit:
        o3d(["data", "render", *arguments, "--radius", "0"])
    said = capsys.readouterr().err
    assert exit.value.code == 2 and "--radius" in said and said.count("\n") == 1
