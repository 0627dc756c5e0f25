"""sample.py around the method: files, refusals, and that nothing is half written.

The networks are stood in for by an oracle; tests/steps covers Algorithm 2 itself.
"""

import dataclasses
import hashlib
import importlib.util
import json
import math
import shutil
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from PIL import Image

from o3d_jax.config import Config, LgmConfig, ModelConfig, OptimConfig, SampleConfig
from o3d_jax.media.ply import read_ply
from o3d_jax.media.splat import read_splat
from o3d_jax.nn.networks import build_networks, init_networks
from o3d_jax.run.compilations import COMPILED
from o3d_jax.sampling import loop, result
from o3d_jax.splat import render
from o3d_jax.steps.reconstruct import Reconstruction
from o3d_jax.steps.sample import Estimate, LoopState
from o3d_jax.types import Frozen, Gaussians, Maps, Params
from o3d_jax.weights.checkpoint import BUNDLED, Weights, check_fits, load_model, named_parts
from o3d_jax.weights.streaming import StoredModel

VIEWS, SIZE, LEVELS = 4, 64, 3
LEAF = jax.ShapeDtypeStruct((), jnp.float32)
FILES = {
    *("input.png", "views.png", "renders.png", "loop.png"),
    *("gaussians.ply", "gaussians.splat", "orbit.gif", "manifest.json"),
}


@pytest.fixture
def script(monkeypatch, tmp_path):
    """The module sample.py with an oracle for a model: red to the right (+x), blue elsewhere."""
    path = Path(__file__).parents[1] / "sample.py"
    spec = importlib.util.spec_from_file_location("sample_script", path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "sample_script", module)
    spec.loader.exec_module(module)
    config = Config(
        name="oracle",
        model=ModelConfig(image_size=SIZE, num_views=VIEWS, lgm=LgmConfig(num_views=VIEWS)),
        sample=SampleConfig(levels=LEVELS),
        optim=OptimConfig(lpips_weight=0.0),
    )
    something = {"params": {}}
    params = Params(unet=something, lgm=something, clip=something)
    nothing = Weights(params=params, frozen=Frozen(vae=something))
    leaves = {(name, "params"): LEAF for name in named_parts(nothing)}
    oracle = StoredModel(folder=tmp_path, config=config, leaves=leaves)
    monkeypatch.setattr(loop, "open_model", lambda path: oracle)
    monkeypatch.setattr(loop, "weights_to_sample", lambda stored, on_host: nothing)
    monkeypatch.setattr(loop, "sample_prepare", prepare)
    monkeypatch.setattr(loop, "sample_step", step)
    monkeypatch.setattr(module, "use_compilation_cache", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path / "no-ffmpeg"))
    return module


PARTS = ("programs", "each level")
"""Rows of a profile that are part of another."""

compiled_render = jax.jit(render, static_argnums=2)  # Or each call would compile anew.


def gaussians():
    return Gaussians(
        means=jnp.array([[[0.3, 0.0, 0.0], [-0.3, 0.0, 0.0]]]),
        scales=jnp.full((1, 2, 3), 0.1),
        quats=jnp.tile(jnp.array([1.0, 0, 0, 0]), (1, 2, 1)),
        opacities=jnp.full((1, 2), 0.95),
        colors=jnp.array([[[1.0, 0, 0], [0, 0, 1.0]]]),
    )


def prepare(model, image, key):
    assert image.shape == (1, SIZE, SIZE, 3)
    x = jax.random.normal(key, (1, VIEWS, 8, 8, 4))
    maps = Maps.nothing(1, VIEWS, SIZE, SIZE)
    return None, LoopState(x=x, maps=maps, guidance=jnp.ones(VIEWS))


def step(model, condition, cameras, state, sigma, sigma_next):
    rendering = compiled_render(gaussians(), cameras, (SIZE, SIZE), jnp.ones(3))
    made = Reconstruction(gaussians=gaussians(), rendering=rendering)
    maps = Maps(rgb=rendering.rgb, ccm=rendering.rgb)
    views = rendering.rgb.at[:, :, 0, 0, 0].set(jax.nn.sigmoid(state.x.mean(axis=(2, 3, 4))))
    estimate = Estimate(latents=state.x, views=views, reconstruction=made)
    return dataclasses.replace(state, maps=maps), estimate


@pytest.fixture
def picture(tmp_path):
    pixels = np.full((50, 70, 3), 255, np.uint8)
    pixels[10:40, 20:40] = (200, 60, 20)
    Image.fromarray(pixels).save(tmp_path / "brick.png")
    return tmp_path / "brick.png"


def run(script, *arguments):
    script.main([str(argument) for argument in arguments])


def colors_at(path, frame=0):
    """Which of red and blue dominates left and right of the middle of a picture."""
    with Image.open(path) as image:
        image.seek(frame)
        pixels = np.asarray(image.convert("RGB"), np.float32)
    ink = 255 - pixels
    half = pixels.shape[1] // 2

    def name(part):
        return "red" if part[..., 0].sum() < part[..., 2].sum() else "blue"

    return name(ink[:, :half]), name(ink[:, half:])


def test_all_files_are_written_and_say_where_they_come_from(script, picture, tmp_path, capsys):
    out = tmp_path / "made" / "out"
    run(script, picture, "--out", out, "--seed", 5, "--orbit-size", 48)
    folder = out / "brick"
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in out.iterdir()] == ["brick"]
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["seed"] == 5 and manifest["config"]["sample"]["levels"] == LEVELS
    assert manifest["image_sha256"] == hashlib.sha256(picture.read_bytes()).hexdigest()
    assert set(manifest["files"]) == FILES - {"manifest.json"}
    stages = {"start", "model", "input", "sampling", "pictures", "files", "turntable"}
    assert set(manifest["seconds"]) == stages | {"programs", "level", "all"}
    said = capsys.readouterr().out
    assert str(folder) in said and "no orbit.mp4" in said


def test_profile_says_where_the_seconds_of_the_manifest_went(script, picture, tmp_path, capsys):
    run(script, picture, "--out", tmp_path, "--orbit-size", 48, "--profile")
    manifest = json.loads((tmp_path / "brick" / "manifest.json").read_text())
    seconds, said = manifest["seconds"], capsys.readouterr().out
    table = said[said.index("start and imports") :].splitlines()
    figures = {line[:32].strip(): float(line[32:].split()[0]) for line in table}
    assert figures["sampling"] == round(seconds["sampling"], 2)
    assert figures["in all"] == round(seconds["all"], 2)
    # Figures are rounded to 0.01, and parts of the sampling are not counted twice.
    whole = [value for name, value in figures.items() if name.split(",")[0] not in PARTS]
    assert abs(sum(whole) - 2 * figures["in all"]) < 0.05
    assert 0 <= figures["rest"] < 0.2 * figures["in all"]
    # The process is as old as pytest's.
    assert figures["start and imports"] > 1


def test_the_pictures_show_the_object_from_the_input_s_side_first(script, picture, tmp_path):
    run(script, picture, "--out", tmp_path, "--orbit-size", 48)
    folder = tmp_path / "brick"
    # +x is right of the camera on +z, and left of one that looks from behind.
    assert colors_at(folder / "orbit.gif") == ("blue", "red")
    assert colors_at(folder / "orbit.gif", result.ORBIT_FRAMES // 2) == ("red", "blue")
    # A quarter on it is on +x itself, where red hides blue.
    assert colors_at(folder / "orbit.gif", result.ORBIT_FRAMES // 4) == ("red", "red")
    for stored in (read_ply(folder / "gaussians.ply"), read_splat(folder / "gaussians.splat")):
        np.testing.assert_allclose(stored.means, gaussians().means[0])  # They lie on the axis.
    square = np.asarray(Image.open(folder / "input.png"), np.float32)
    rows = np.flatnonzero((square < 250).any(axis=(1, 2)))
    assert abs(np.ptp(rows) + 1 - 0.75 * SIZE) <= 3  # 1 - border; blurred by enlargement.


def test_a_mask_takes_its_part_of_a_busy_picture_and_another_gives_another_result(
    script, tmp_path, capsys
):
    pixels = np.random.default_rng(0).integers(0, 256, (50, 70, 3), np.uint8)
    pixels[10:40, 20:40] = (200, 60, 20)
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    order = (tmp_path / "photo.png", "--out", tmp_path / "out", "--orbit-size", 48)
    assert status_of(script, *order) == 2
    assert "busy; " in capsys.readouterr().err and not (tmp_path / "out").exists()
    mask = np.zeros((50, 70), np.uint8)
    mask[10:40, 20:40] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    run(script, *order, "--mask", tmp_path / "mask.png")
    square = np.asarray(Image.open(tmp_path / "out" / "photo" / "input.png"), np.float32)
    # 20 x 30 pixels: the longest side is 1 - border of the square's, 0.75.
    ink = (255 - square[..., 2]).sum() / (255 - 20)
    np.testing.assert_allclose(ink, 0.75**2 * 20 / 30 * SIZE**2, rtol=0.02)
    mask[30:] = 0
    Image.fromarray(mask).save(tmp_path / "mask.png")
    assert status_of(script, *order, "--mask", tmp_path / "mask.png") == 2
    assert "another mask_sha256" in capsys.readouterr().err


def test_what_was_done_to_a_picture_is_said(script, tmp_path, capsys):
    pixels = np.zeros((50, 70, 4), np.uint8)
    pixels[..., 3] = 60
    pixels[10:40, 20:40] = (200, 60, 20, 255)
    Image.fromarray(pixels).save(tmp_path / "shadow.png")
    run(script, tmp_path / "shadow.png", "--out", tmp_path / "out", "--orbit-size", 48)
    assert "shadow.png: 83% of what is visible is soft" in capsys.readouterr().out


@pytest.mark.parametrize("changed", [{"means": np.nan}, {"opacities": 0.001}])
def test_an_object_of_nothing_is_refused_at_its_level_and_leaves_no_folder(
    script, monkeypatch, picture, tmp_path, capsys, changed
):
    taken = []

    def broken(*given):
        state, estimate = step(*given)
        taken.append(given[-2])
        ((field, value),) = changed.items()
        made = jnp.full_like(getattr(gaussians(), field), value)
        there = gaussians() if len(taken) < 2 else dataclasses.replace(gaussians(), **{field: made})
        reconstruction = dataclasses.replace(estimate.reconstruction, gaussians=there)
        return state, dataclasses.replace(estimate, reconstruction=reconstruction)

    monkeypatch.setattr(loop, "sample_step", broken)
    assert status_of(script, picture, "--out", tmp_path / "out", "--orbit-size", 48) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"at noise level 2 of {LEVELS} (sigma " in error and len(taken) == 2
    said = "2 of 2 Gaussians are not finite" if "means" in changed else "the object is transparent"
    assert said in error
    assert not (tmp_path / "out").exists()


def test_files_of_gaussians_stand_upright_in_the_axes_asked_for(
    script, monkeypatch, picture, tmp_path
):
    """In the method's world the vertical of an input from 30 degrees above is 30 degrees off y."""
    vertical = jnp.array([0.0, math.cos(math.radians(30)), math.sin(math.radians(30))])
    leaning = dataclasses.replace(gaussians(), means=jnp.stack([vertical, -vertical])[None] * 0.4)
    real_step = loop.sample_step

    def lean(*given):
        state, estimate = real_step(*given)
        made = dataclasses.replace(estimate.reconstruction, gaussians=leaning)
        return state, dataclasses.replace(estimate, reconstruction=made)

    monkeypatch.setattr(loop, "sample_step", lean)
    for up, expected in (("y-down", [0, -0.4, 0]), ("z-up", [0, 0, 0.4])):
        chosen = () if up == "y-down" else ("--up", up)
        order = (picture, "--out", tmp_path / up, "--orbit-size", 48, "--elevation", 30)
        run(script, *order, *chosen)
        folder = tmp_path / up / "brick"
        body = (folder / "gaussians.ply").read_bytes().split(b"end_header\n")[1]
        np.testing.assert_allclose(np.frombuffer(body, "<f4")[:3], expected, atol=1e-6)
        row = np.frombuffer((folder / "gaussians.splat").read_bytes(), "<f4", count=3)
        np.testing.assert_allclose(row, expected, atol=1e-6)
        assert json.loads((folder / "manifest.json").read_text())["up"] == up
    a, b = ((tmp_path / up / "brick" / "orbit.gif").read_bytes() for up in ("y-down", "z-up"))
    assert a == b


def test_a_mesh_is_made_with_the_rest_or_later_and_is_the_same_one(script, picture, tmp_path):
    for name, order in (("a", [["--mesh"]]), ("b", [[], ["--mesh"]])):
        for more in order:
            run(script, picture, "--out", tmp_path / name, "--orbit-size", 48, *more)
    a, b = ((tmp_path / name / "brick" / "mesh.glb").read_bytes() for name in "ab")
    assert a == b
    mesh = trimesh.load(tmp_path / "a" / "brick" / "mesh.glb", force="mesh")
    # Balls at 0.3 to the right and to the left, turned about their own axis.
    assert mesh.is_watertight and mesh.body_count == 2
    np.testing.assert_allclose(mesh.bounds[:, 0].sum(), 0, atol=0.01)
    made, added = (
        json.loads((tmp_path / name / "brick" / "manifest.json").read_text()) for name in "ab"
    )
    assert "mesh.glb" in made["files"] and "mesh" in made["seconds"]
    assert added["files"] == made["files"] and "mesh" not in added["seconds"]


def test_a_result_of_which_no_mesh_can_be_made_stays(
    script, monkeypatch, picture, tmp_path, capsys
):
    real_step = loop.sample_step

    def fade(*given):
        state, estimate = real_step(*given)
        faint = dataclasses.replace(gaussians(), opacities=jnp.full((1, 2), 0.01))
        made = dataclasses.replace(estimate.reconstruction, gaussians=faint)
        return state, dataclasses.replace(estimate, reconstruction=made)

    monkeypatch.setattr(loop, "sample_step", fade)
    run(script, picture, "--out", tmp_path, "--orbit-size", 48, "--mesh")
    assert "no mesh.glb: the object has no Gaussian of opacity 0.05" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / "brick").iterdir()} == FILES


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(script, picture, tmp_path):
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        out = tmp_path / name
        run(script, picture, "--out", out, "--orbit-size", 48, "--seed", seed)
    a, c = ((tmp_path / x / "brick" / "views.png").read_bytes() for x in "ac")
    assert a != c
    for name in FILES - {"manifest.json"}:  # It has the time each stage took.
        a, b = ((tmp_path / x / "brick" / name).read_bytes() for x in "ab")
        assert a == b, name


def test_levels_replace_the_models(script, picture, tmp_path):
    run(script, picture, "--out", tmp_path, "--orbit-size", 48, "--levels", 2)
    manifest = json.loads((tmp_path / "brick" / "manifest.json").read_text())
    assert manifest["config"]["sample"]["levels"] == 2


def test_a_failure_keeps_the_earlier_result_and_leaves_no_part(
    script, monkeypatch, picture, tmp_path
):
    out = tmp_path / "out"
    run(script, picture, "--out", out, "--orbit-size", 48)
    before = {path.name: path.read_bytes() for path in (out / "brick").iterdir()}
    Image.open(picture).rotate(90, expand=True).save(picture)

    def disk_full(path, frames):
        raise OSError("disk full")

    monkeypatch.setattr(result, "write_gif", disk_full)
    with pytest.raises(OSError, match="disk full"):
        run(script, picture, "--out", out, "--overwrite", "--seed", 9, "--orbit-size", 48)
    assert {path.name: path.read_bytes() for path in (out / "brick").iterdir()} == before
    assert [path.name for path in out.iterdir()] == ["brick"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/none.png"], "none.png does not exist"),
        (["{tmp}/mine"], "mine holds no PNG, JPEG or WebP files"),
        (["{tmp}/brick.png", "--levels", "1"], "--levels 1"),
        (["{tmp}/brick.png", "--levels", "few"], "parsing --levels:"),
        (["{tmp}/brick.png", "--sed", "1"], "Unrecognized options: --sed"),
        (["{tmp}/brick.png", "--border", "0.99"], "--border 0.99"),
        (["{tmp}/none.png", "--out", "{tmp}/new/deep"], "none.png does not exist"),
        (["{tmp}/brick.png", "--seed", "-1"], "--seed -1"),
        (["{tmp}/brick.png", "--mask", "{tmp}/none.png"], "none.png does not exist"),
        (["{tmp}/none.png", "{tmp}/brick.png", "--mask", "{tmp}/brick.png"], "is of one image"),
        (["{tmp}/brick.png", "--elevation", "90"], "--elevation 90"),
        (["{tmp}/brick.png", "--orbit-size", "0"], "--orbit-size 0"),
        (["{tmp}/brick.png", "--out", "{tmp}/brick.png"], "cannot write to"),
        (
            ["{tmp}/brick.png", "--out", "{tmp}/mine"],
            "brick exists and is no earlier result: it is or holds letter.txt",
        ),
    ],
)
def test_a_refusal_is_one_line_and_status_2_and_writes_nothing(
    script, picture, tmp_path, capsys, arguments, said
):
    (tmp_path / "mine" / "brick").mkdir(parents=True)
    (tmp_path / "mine" / "brick" / "letter.txt").write_text("keep me")
    before = sorted(tmp_path.rglob("*"))
    filled = [argument.format(tmp=tmp_path) for argument in arguments]
    if "--out" not in filled:
        filled += ["--out", str(tmp_path)]
    with pytest.raises(SystemExit) as stop:
        run(script, *filled)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1
    assert said in error
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def folder(picture, tmp_path):
    """A brick and a taller one, a file that is cut short, and one that is no picture."""
    folder = tmp_path / "many"
    folder.mkdir()
    shutil.copy(picture, folder / "a.png")
    Image.open(picture).resize((70, 90)).save(folder / "b.webp", lossless=True)
    (folder / "bad.jpg").write_bytes(b"\xff\xd8\xff\xe0")
    (folder / "notes.txt").write_text("no picture")
    return folder


def status_of(script, *arguments):
    with pytest.raises(SystemExit) as stop:
        run(script, *arguments)
    return stop.value.code


def test_an_image_that_fails_is_in_the_table_and_the_others_are_made(
    script, picture, folder, tmp_path, capsys
):
    out, missing = tmp_path / "out", tmp_path / "none.png"
    order = (missing, folder, picture, "--out", out, "--orbit-size", 48)
    assert status_of(script, *order) == 1
    assert sorted(path.name for path in out.iterdir()) == ["a", "b", "brick"]
    *_, head, none, a, b, bad, brick, total = capsys.readouterr().out.splitlines()
    assert head == "" and total == "5 images: 2 failed, 3 made"
    assert none.split(maxsplit=2)[:2] == [str(missing), "failed"]
    assert "none.png does not exist" in none and "not a readable PNG, JPEG or WebP" in bad
    for row, image in ((a, folder / "a.png"), (b, folder / "b.webp"), (brick, picture)):
        assert row.split() == [str(image), "made", str(out / image.stem)]


def test_one_of_several_images_becomes_what_it_becomes_alone(script, picture, folder, tmp_path):
    status_of(script, folder, picture, "--out", tmp_path / "all", "--orbit-size", 48)
    run(script, picture, "--out", tmp_path / "alone", "--orbit-size", 48)
    for name in FILES - {"manifest.json"}:
        a, b = ((tmp_path / x / "brick" / name).read_bytes() for x in ("all", "alone"))
        assert a == b, name


def test_several_images_share_one_model_and_its_compiled_programs(
    script, monkeypatch, folder, tmp_path
):
    compiled, ends, reads = [], [], []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event == COMPILED else None
    )
    real_read, real_write = loop.open_model, result.write_gif

    def read(path):
        reads.append(path)
        return real_read(path)

    def write(path, frames):
        ends.append(len(compiled))
        real_write(path, frames)

    monkeypatch.setattr(loop, "open_model", read)
    monkeypatch.setattr(result, "write_gif", write)
    shutil.copy(folder / "b.webp", folder / "c.webp")
    # No other test draws turntables of this size, so that something is compiled.
    status_of(script, folder, "--out", tmp_path / "out", "--orbit-size", 41)
    assert len(reads) == 1
    assert 0 < ends[0] == ends[1] == ends[2]


def test_what_is_there_is_skipped_unless_it_is_to_be_made_once_more(
    script, picture, folder, tmp_path, capsys
):
    (folder / "bad.jpg").unlink()
    order = (folder, picture, "--out", tmp_path / "out", "--orbit-size", 48)
    run(script, *order[1:])
    before = (tmp_path / "out" / "brick" / "manifest.json").stat().st_mtime_ns
    run(script, *order)
    assert capsys.readouterr().out.splitlines()[-1] == "3 images: 2 made, 1 there already"
    assert (tmp_path / "out" / "brick" / "manifest.json").stat().st_mtime_ns == before
    run(script, *order[1:])
    assert "brick is there already; --overwrite makes it once more" in capsys.readouterr().out
    run(script, *order, "--overwrite")
    assert capsys.readouterr().out.splitlines()[-1] == "3 images: 3 made"
    assert (tmp_path / "out" / "brick" / "manifest.json").stat().st_mtime_ns != before


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (("--seed", "6"), "another seed"),
        (("--levels", "2"), "another config"),
        (("--border", "0.3"), "another border"),
        (("--elevation", "0"), "another elevation"),
        (("--orbit-size", "49"), "another orbit_size"),
        (("--up", "y-up"), "another up"),
        (("another picture",), "another image_sha256"),
        (("another model",), "another checkpoint_checksum"),
    ],
)
def test_a_result_of_other_settings_is_neither_skipped_nor_replaced(
    script, picture, tmp_path, capsys, other, said
):
    checkpoint = tmp_path / "model"
    checkpoint.mkdir()
    (checkpoint / "checksum").write_text("abc")
    order = (picture, "--out", tmp_path / "out", "--checkpoint", checkpoint)
    run(script, *order, "--orbit-size", 48)
    before = {path: path.read_bytes() for path in (tmp_path / "out" / "brick").iterdir()}
    if other == ("another picture",):
        Image.open(picture).rotate(90, expand=True).save(picture)
    elif other == ("another model",):
        (checkpoint / "checksum").write_text("abd")
    else:
        order = (*order, *other)
    last = () if "--orbit-size" in other else ("--orbit-size", 48)
    assert status_of(script, *order, *last) == 2
    assert f"was made with {said}; give --overwrite" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "out" / "brick").iterdir()} == before


def test_a_folder_whose_manifest_is_none_of_ours_is_kept(script, picture, tmp_path, capsys):
    manifest = tmp_path / "out" / "brick" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    for text in ("{", "[]"):
        manifest.write_text(text)
        assert status_of(script, picture, "--out", tmp_path / "out") == 2
        assert "manifest.json is damaged; remove " in capsys.readouterr().err
        assert manifest.read_text() == text


def test_two_images_of_one_name_are_refused_and_one_given_twice_is_one(
    script, picture, folder, tmp_path, capsys
):
    twice = folder / "brick.jpg"
    Image.open(picture).save(twice)
    assert status_of(script, picture, folder, "--out", tmp_path / "out") == 2
    assert f"{picture} and {twice} would both become" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    run(script, picture, picture, "--out", tmp_path / "out", "--orbit-size", 48)
    assert "images:" not in capsys.readouterr().out


def test_a_network_trained_alone_is_no_model_to_sample(
    script, monkeypatch, picture, tmp_path, capsys
):
    alone = dataclasses.replace(loop.open_model(None), leaves={("lgm", "params"): LEAF})
    monkeypatch.setattr(loop, "open_model", lambda path: alone)
    with pytest.raises(SystemExit) as stop:
        run(script, picture, "--out", tmp_path / "new")
    assert stop.value.code == 2 and not (tmp_path / "new").exists()
    error = capsys.readouterr().err
    assert "holds no unet, no vae, no image tower; give RUN/model" in error
    assert "or convert again with --svd SVD_DIR" in error


def test_the_bundled_model_is_whole_and_fits_its_config():
    model = load_model(BUNDLED / "nano")
    networks = build_networks(model.config.model)
    shapes = jax.eval_shape(
        lambda key: init_networks(networks, model.config.model, key, True), jax.random.key(0)
    )
    check_fits(model.weights, Weights(params=shapes[0], frozen=shapes[1]), "the bundled model")
    files = [path for path in BUNDLED.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 25e6


def test_the_bundled_example_can_be_read(script):
    (image,) = script.Arguments().images
    foreground = script.read_foreground(image).rgba
    assert 0.1 < (foreground[..., 3] > 0.5).mean() < 0.8
