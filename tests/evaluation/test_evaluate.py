"""evaluate from a folder of orbits to its tables, with models of which all numbers are known.

Orbits show a picture that says which camera it was taken by. A model that reads its cameras right
draws the same, plus an error of its own; so PSNR is known by hand if frames, cameras, sizes and
blending are what the protocol says.
"""

import dataclasses
import hashlib
import json
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import trimesh
from PIL import Image

from o3d_jax.__main__ import main as o3d
from o3d_jax.commands import evaluate as command
from o3d_jax.data.meshes.orbits import OrbitPlan
from o3d_jax.data.orbits.folder import RenderedOrbit, read_orbit, write_orbit
from o3d_jax.evaluation import evaluate, scores
from o3d_jax.evaluation.data import OrbitName, read_sample
from o3d_jax.evaluation.progress import Finished, Unfinished
from o3d_jax.evaluation.protocol import ImagesProtocol, Protocol
from o3d_jax.evaluation.report import plain
from o3d_jax.evaluation.scores import NO_SHAPE, OrbitScore, PerMetric, ShapeScore, measure
from o3d_jax.evaluation.sheet import COMPARISON_TILE, Shown
from o3d_jax.geometry.orbits import orbit, orbit_poses, relative_to_first
from o3d_jax.media.sheets import GAP
from o3d_jax.steps.reconstruct import Reconstruction
from o3d_jax.steps.sample import Estimate, generate
from o3d_jax.types import Frozen, Gaussians, Params, Rendering
from o3d_jax.weights.checkpoint import Weights, save_model

FRAMES, FILE_SIZE = 8, 32  # The tiny model makes 4 views of 16 px, every second frame.
RADIUS, FOV = 1.5, 49.1
FILES = {"results.json", "results.md", "sheet.png"}


def picture(azimuth_deg, size):
    """Red rises with the azimuth, green from left to right in steps that survive halving."""
    columns = np.arange(16).repeat(size // 16)
    image = np.zeros((size, size, 3), np.uint8)
    image[..., 0] = round(azimuth_deg / 45) * 20 + 20
    image[..., 1] = columns * 10
    image[..., 2] = 40
    image[: size // 4] = 255  # Transparent in the file.
    return image


def write_object(folder, name, elevation=10.0, size=FILE_SIZE, frames=FRAMES):
    azimuths = np.arange(frames) * (360 / frames)
    rgba = np.full((frames, size, size, 4), 255, np.uint8)
    for frame, azimuth in zip(rgba, azimuths, strict=True):
        frame[..., :3] = picture(azimuth, size)
        frame[: size // 4] = 0
    # Where an orbit begins in the world is nobody's business.
    poses = orbit_poses(elevation, azimuths + 70, RADIUS)
    write_orbit(folder / name, RenderedOrbit(name, rgba, poses, FOV))


@pytest.fixture
def rendered(tmp_path):
    folder = tmp_path / "rendered"
    for i, name in enumerate(("cup/0", "cup/1", "hat/0")):
        write_object(folder, name, 10.0 * i)
    return folder


def save_named(folder, tiny, name, **parts):
    something = {"params": {"x": np.zeros(1, np.float32)}}
    params = {"unet": something, "lgm": something, "clip": something} | parts
    weights = Weights(params=Params(**params), frozen=Frozen(vae=something))
    save_model(folder / name, dataclasses.replace(tiny, name=name), weights)
    return folder / name


@pytest.fixture(scope="module")
def models(tiny, tmp_path_factory):
    """Folders of two models; their names say how far off their views and renders are."""
    folder = tmp_path_factory.mktemp("models")
    return [save_named(folder, tiny, name) for name in ("good", "poor")]


ERRORS = {"good": (0.1, 0.01), "poor": (0.1, 0.1)}  # Of views and renders: 20 dB is 0.1, 40 is 0.01


def oracle(model, image, cameras, key):
    """Draws what its cameras see, as `picture` has it, too bright by its errors."""
    assert image.shape == (1, 16, 16, 3)
    poses = np.asarray(cameras.camera_to_world[0], np.float64)
    focal = 0.5 / np.tan(np.deg2rad(FOV) / 2)
    np.testing.assert_allclose(cameras.intrinsics[0, :, 0, 0], focal, atol=1e-6)
    np.testing.assert_allclose(poses[0, :3, 3], [0, 0, RADIUS], atol=1e-6)
    start = (float(image[0, 8, 0, 0]) * 255 - 20) / 20 * 45  # Where the input was taken from.
    azimuths = [(start + azimuth_between(poses[0], pose)) % 360 for pose in poses]
    truth = np.stack([picture(azimuth, 16) for azimuth in azimuths]) / 255
    np.testing.assert_allclose(image[0], truth[0], atol=1e-6)
    views, renders = (jnp.asarray(truth + e, jnp.float32)[None] for e in ERRORS[model.config.name])
    zeros = jnp.zeros((*renders.shape[:-1], 1))
    gaussians = Gaussians(
        means=jnp.zeros((1, 1, 3)),
        scales=jnp.zeros((1, 1, 3)),
        quats=jnp.zeros((1, 1, 4)),
        opacities=jnp.zeros((1, 1)),
        colors=jnp.zeros((1, 1, 3)),
    )
    rendering = Rendering(rgb=renders, alpha=zeros, depth=zeros)
    return Estimate(
        latents=jnp.zeros((1, len(poses), 1, 1, 1)),
        views=views,
        reconstruction=Reconstruction(gaussians=gaussians, rendering=rendering),
    )


def azimuth_between(first, pose):
    """Degrees that a camera was turned by around the orbit's axis, however that is tilted."""
    relative = np.linalg.inv(first) @ pose
    angle = np.rad2deg(np.arccos(np.clip((np.trace(relative[:3, :3]) - 1) / 2, -1, 1)))
    to_the_left = relative[0, 3] < -1e-6  # As the first camera sees it: beyond 180 degrees.
    return 360 - angle if to_the_left else angle


@pytest.fixture
def with_oracle(monkeypatch):
    calls = []

    def counted(*arguments):
        calls.append(arguments)
        return oracle(*arguments)

    monkeypatch.setattr(evaluate, "generate", counted)
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    return calls


def run(monkeypatch, *arguments):
    o3d(["evaluate", *map(str, arguments)])


def test_numbers_are_those_that_the_models_are_made_to_have(
    with_oracle, monkeypatch, rendered, models, tmp_path, capsys
):
    out = tmp_path / "new" / "out"
    run(monkeypatch, rendered, "--weights", *models, "--out", out)
    assert {path.name for path in out.iterdir()} == FILES
    found = json.loads((out / "results.json").read_text())
    assert found["objects"] == 2 and len(with_oracle) == 6
    assert found["lpips"].startswith("not measured: no weights given")
    for model, (views, renders) in zip(found["models"], ((20, 40), (20, 20)), strict=True):
        summary = model["summary"]
        # White is clipped to what it was: a quarter of the picture has no error.
        off = 10 * np.log10(4 / 3)
        assert summary["views"]["psnr"]["value"] == pytest.approx(views + off, abs=1e-3)
        assert summary["renders"]["psnr"]["value"] == pytest.approx(renders + off, abs=1e-3)
        assert summary["delta"]["psnr"]["value"] == pytest.approx(renders - views, abs=1e-3)
        assert summary["input_views"]["psnr"]["value"] == pytest.approx(views + off, abs=1e-3)
        assert summary["views"]["lpips"] == "not measured: no weights given"
        assert model["frames"] == [0, 2, 4, 6] and model["resolution"] == 16
        assert [o["orbit_name"] for o in model["orbits"]] == ["cup/0", "cup/1", "hat/0"]
    table = (out / "results.md").read_text()
    assert table in capsys.readouterr().out
    assert "| good | rgb+ccm | 41.25 [41.25, 41.25] |" in table
    assert "2 objects, 3 orbits, compared at 16 px. LPIPS: not measured" in table
    # By hand: 2, 4 and 6 times 20 / 255 off in red, on three quarters of the picture.
    mean = np.mean([-10 * np.log10(0.25 * (20 * k / 255) ** 2) for k in (2, 4, 6)])
    assert f"| input copied to all views |  |  |  | {mean:.2f} [" in table


@pytest.mark.parametrize(("written", "meant"), [('"compared"', None), ("64", 64)])
def test_lpips_is_measured_where_its_weights_are_given(
    with_oracle, monkeypatch, rendered, models, tmp_path, written, meant
):
    """A stand-in for the network: a weight times the mean distance of colors."""

    def read(files, network):
        assert network == "vgg"
        return float(files[0].read_text())

    def distance(weights, a, b, network, size):
        assert (network, size) == ("vgg", meant)
        return weights * abs(a - b).mean(axis=(1, 2, 3))

    monkeypatch.setattr(evaluate, "read_lpips", read)
    monkeypatch.setattr(scores, "lpips", distance)
    files = [tmp_path / "trunk.h5", tmp_path / "lin.h5"]
    for path, text in zip(files, ("2.0", "abc"), strict=True):
        path.write_text(text)
    protocol = tmp_path / "mine.toml"
    protocol.write_text(f'name = "m"\nversion = 1\n[metrics]\nlpips_size = {written}\n')
    arguments = ("--weights", models[0], "--out", tmp_path / "out", "--protocol", protocol)
    run(monkeypatch, rendered, *arguments, "--lpips", *files)
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    digest = hashlib.sha256(b"2.0abc").hexdigest()
    assert found["lpips"] == {"files": ["trunk.h5", "lin.h5"], "sha256": digest}
    summary = found["models"][0]["summary"]
    # By hand, as above: 0.1 and 0.01 on three quarters of the picture.
    assert summary["views"]["lpips"]["value"] == pytest.approx(0.15, abs=1e-5)
    assert summary["delta"]["lpips"]["value"] == pytest.approx(0.135, abs=1e-5)
    table = (tmp_path / "out" / "results.md").read_text()
    assert f"LPIPS: vgg, `{digest[:12]}`." in table and "Delta LPIPS |" in table
    assert "0.1500 [0.1500, 0.1500]" in table


def test_a_protocol_s_frames_sizes_and_objects_are_used(
    with_oracle, monkeypatch, rendered, models, tmp_path
):
    protocol = tmp_path / "mine.toml"
    protocol.write_text(
        'name = "mine"\nversion = 1\n[objects]\nnames = ["cup"]\norbits = [1]\n[views]\n'
        "first_frame = 2\nframes = [0, 3, 4, 7]\n[images]\nresolution = 32\n"
        "[sampling]\nlevels = 2\n"
    )
    run(
        *(monkeypatch, rendered, "--weights", models[0], "--out", tmp_path / "out"),
        *("--protocol", protocol, "--labels", "a|b"),
    )
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    (model,) = found["models"]
    assert model["frames"] == [2, 5, 6, 1] and model["resolution"] == 32
    assert [o["orbit_name"] for o in model["orbits"]] == ["cup/1"]
    assert found["protocol"]["objects"] == {"names": ["cup"], "orbits": [1]}
    assert with_oracle[0][0].config.sample.levels == 2
    # Enlarged by blocks, views are the picture again; the border of white is clipped on both sides.
    assert model["summary"]["views"]["psnr"]["value"] == pytest.approx(21.25, abs=0.01)
    assert model["summary"]["views"]["psnr"]["low"] is None  # Of one object.
    assert "| a/b | rgb+ccm | 41.25 |" in (tmp_path / "out" / "results.md").read_text()


def test_truth_and_input_are_resized_and_blended_as_the_protocol_says(tiny, tmp_path):
    """By hand: black at half alpha; and a fine pattern, of which an area has the mean."""
    write_object(tmp_path, "cup")
    made = read_orbit(tmp_path / "cup")
    made.rgba[:, 8:16] = (0, 0, 0, 128)
    made.rgba[:, 16:, :, :3] = np.where(np.arange(FILE_SIZE) % 2, 100, 200)[:, None]
    write_orbit(tmp_path / "cup", made)

    def sample(**fields):
        images = ImagesProtocol(**fields)
        protocol = Protocol(name="mine", version=1, images=images)
        return read_sample(tmp_path, OrbitName("cup", "cup"), protocol, tiny)

    area, linear, bicubic = (
        sample(),
        sample(blending="linear"),
        sample(resize_filter="bicubic"),
    )
    assert area.image.shape == (16, 16, 3) and area.truth.shape == (4, 16, 16, 3)
    np.testing.assert_array_equal(area.image, area.truth[0])
    half = 127 / 255
    np.testing.assert_allclose(area.image[5], half, atol=1e-6)
    # sRGB's curve, IEC 61966-2-1.
    np.testing.assert_allclose(linear.image[5], 1.055 * half ** (1 / 2.4) - 0.055, atol=1e-5)
    np.testing.assert_allclose(area.truth[2, 12], 150 / 255, atol=1e-6)
    assert abs(bicubic.truth[2, 12] - 150 / 255).max() > 1e-2  # At the left edge.


def test_noise_depends_on_the_seed_and_the_orbit_s_name_only(
    with_oracle, monkeypatch, rendered, models, tmp_path
):
    def keys(*objects, seed=0):
        with_oracle.clear()
        protocol = tmp_path / "mine.toml"
        protocol.write_text(
            f'name = "mine"\nversion = 1\n[objects]\nnames = {list(objects)}\n'
            f"[sampling]\nseed = {seed}\n"
        )
        arguments = ("--weights", models[0], "--out", tmp_path / "out", "--protocol", protocol)
        run(monkeypatch, rendered, *arguments)
        return [jax.random.key_data(call[-1]).tolist() for call in with_oracle]

    both = keys("cup", "hat")
    assert len({tuple(key) for key in both}) == 3
    assert keys("hat") == both[2:] and keys("hat", seed=1) != both[2:]


def test_other_data_and_other_cameras_are_told(
    with_oracle, monkeypatch, rendered, models, tiny, tmp_path
):
    arguments = ("--weights", models[0], "--out", tmp_path / "out")
    digests = []
    for _ in range(2):
        run(monkeypatch, rendered, *arguments)
        digests.append(json.loads((tmp_path / "out" / "results.json").read_text())["data"])
    assert digests[0] == digests[1] and digests[0]["fovs"] == [FOV, FOV]
    assert "Cameras here" not in (tmp_path / "out" / "results.md").read_text()
    changed = read_orbit(rendered / "hat/0")
    changed.rgba[2, 20, 20, 0] += 1
    write_orbit(rendered / "hat/0", changed)
    run(monkeypatch, rendered, *arguments)
    digest = json.loads((tmp_path / "out" / "results.json").read_text())["data"]["sha256"]
    assert digest != digests[0]["sha256"]
    far = dataclasses.replace(tiny, camera=dataclasses.replace(tiny.camera, radius=1.7))
    (tmp_path / "elsewhere").mkdir()
    other = save_named(tmp_path / "elsewhere", far, "good")
    run(monkeypatch, rendered, "--weights", other, models[0], "--out", tmp_path / "out")
    table = (tmp_path / "out" / "results.md").read_text()
    assert f"Cameras here: radius 1.5, field of view 49.1 degrees; good ({other})" in table
    assert table.count("Cameras here") == 1


def test_the_sheet_shows_the_errors_of_the_renders_once_an_object(
    with_oracle, monkeypatch, rendered, models, tmp_path
):
    run(monkeypatch, rendered, "--weights", *models, "--out", tmp_path / "out")
    sheet = np.asarray(Image.open(tmp_path / "out" / "sheet.png"), np.float32)
    pitch = COMPARISON_TILE + GAP
    last = sheet[:, -pitch + 30 : -10, :].mean(axis=(1, 2))  # The last column: an error.
    rows = [last[-(k + 1) * pitch + 40 : -k * pitch - 10 or None].mean() for k in range(4)]
    # From below: poor, good, poor, good; 0.1 and 0.01 of white are missing.
    np.testing.assert_allclose(rows, [255 * x for x in (0.9, 0.99) * 2], atol=2)
    assert 4 * pitch < len(last) < 5 * pitch


def test_meshes_get_columns_where_true_ones_are_given(
    with_oracle, monkeypatch, rendered, models, tmp_path
):
    def known(gaussians, truth, seen):
        right = seen.alpha.shape == (4, FILE_SIZE, FILE_SIZE) and truth.diagonal > 1
        return ShapeScore(0.75, 1.5, 0.5) if right else NO_SHAPE

    monkeypatch.setattr(evaluate, "shape_of_gaussians", known)
    (tmp_path / "models").mkdir()
    for name in ("cup", "hat"):
        trimesh.creation.box((1, 2, 1)).export(tmp_path / "models" / f"{name}.glb")
    settings = dataclasses.asdict(OrbitPlan(size=FILE_SIZE, frames=FRAMES))
    (rendered / "render_settings.json").write_text(json.dumps(settings))
    order = (rendered, "--weights", *models, "--out", tmp_path / "out")
    run(monkeypatch, *order, "--true-meshes", tmp_path / "models")
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    for model in found["models"]:
        assert model["summary"]["shape"]["chamfer"] == {"value": 1.5, "low": 1.5, "high": 1.5}
        assert model["orbits"][1]["shape"] == {"silhouette": 0.75, "chamfer": 1.5, "fscore": 0.5}
    table = (tmp_path / "out" / "results.md").read_text()
    head, rule, good, *_ = (line for line in table.splitlines() if line.startswith("|"))
    assert head.endswith("| mesh IoU | mesh Chamfer, % | mesh F-score |")
    assert good.endswith("| 0.750 [0.750, 0.750] | 1.50 [1.50, 1.50] | 0.500 [0.500, 0.500] |")
    assert all(line.count("|") == head.count("|") for line in (rule, good))
    assert "| 0.750 | 1.50 | 0.500 |" in table and "Chamfer distance in percent" in table


def test_views_are_those_of_generate(toy, quick_compilation, monkeypatch, rendered, tmp_path):
    """The real loop, with toy networks: what is measured is what Algorithm 2 makes of the orbit."""
    save_model(tmp_path / "toy", toy.config, Weights(params=toy.params, frozen=toy.frozen))
    monkeypatch.setattr(evaluate, "build_networks", lambda model: toy.networks)
    monkeypatch.setattr(command, "use_compilation_cache", lambda: None)
    measured = []

    def spy(metrics, weights, images, truth):
        measured.append(images)
        return measure(metrics, weights, images, truth)

    monkeypatch.setattr(evaluate, "measure", spy)
    protocol = tmp_path / "hat.toml"
    protocol.write_text('name = "hat"\nversion = 1\n[objects]\nnames = ["hat"]\n')
    arguments = (rendered, "--weights", tmp_path / "toy", "--out", tmp_path / "out")
    run(monkeypatch, *arguments, "--protocol", protocol)
    cameras = relative_to_first(orbit(20.0, np.arange(4) * 90.0, RADIUS, FOV))
    cameras = jax.tree.map(lambda a: a[None], cameras)
    image = jnp.asarray(picture(0, 16), jnp.float32)[None] / 255
    key = jax.random.fold_in(jax.random.key(0), zlib.crc32(b"hat/0"))
    found = generate(toy, image, cameras, key)
    # One program; its inputs differ by float32 rounding.
    np.testing.assert_allclose(measured[0], found.views[0], atol=1e-4)
    np.testing.assert_allclose(measured[1], found.reconstruction.rendering.rgb[0], atol=1e-4)
    assert np.ptp(measured[0]) > 0.1 and abs(measured[0] - measured[1]).max() > 0.1


def result_of(out):
    """All but the times."""
    found = json.loads((out / "results.json").read_text())
    assert [model.pop("seconds_an_orbit") >= 0 for model in found["models"]]
    return found, (out / "sheet.png").read_bytes()


def broken_off(monkeypatch, calls, after, arguments):
    """A run that is stopped when it samples once too often."""

    def stops(*inputs):
        if len(calls) == after:
            raise KeyboardInterrupt
        calls.append(inputs)
        return oracle(*inputs)

    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "generate", stops)
        with pytest.raises(KeyboardInterrupt):
            run(patch, *arguments)


@pytest.mark.parametrize("after", [2, 4])  # In the first of two models, and in the second.
def test_a_run_that_broke_off_goes_on_and_ends_as_one_that_did_not(
    with_oracle, monkeypatch, rendered, models, tmp_path, after
):
    arguments = (rendered, "--weights", *models, "--out")
    run(monkeypatch, *arguments, tmp_path / "straight")
    with_oracle.clear()
    out = tmp_path / "out"
    broken_off(monkeypatch, with_oracle, after, (*arguments, out))
    kept = sorted((tmp_path / "out.unfinished").iterdir())
    assert len(kept) == after and not out.exists()
    kept[0].write_bytes(kept[0].read_bytes()[:-100])  # Damaged: done once more.
    run(monkeypatch, *arguments, out)
    assert len(with_oracle) == 6 + 1
    assert result_of(out) == result_of(tmp_path / "straight")
    assert not (tmp_path / "out.unfinished").exists()


@pytest.mark.parametrize("change", ["data", "weights", "protocol", "lpips"])
def test_what_was_done_for_other_numbers_is_not_gone_on_with(
    with_oracle, monkeypatch, rendered, models, tiny, tmp_path, change
):
    """The first two orbits were finished; all three are done again."""
    model = save_named(tmp_path, tiny, "good")
    arguments = [rendered, "--weights", model, "--out", tmp_path / "out"]
    broken_off(monkeypatch, with_oracle, 2, arguments)
    with_oracle.clear()
    if change == "data":
        write_object(rendered, "hat/0", 15.0)
    elif change == "weights":
        save_named(tmp_path, tiny, "good", lgm={"params": {"x": np.ones(1, np.float32)}})
    elif change == "protocol":
        (tmp_path / "mine.toml").write_text('name = "orbits"\nversion = 1\n[intervals]\nseed = 7\n')
        arguments += ["--protocol", tmp_path / "mine.toml"]
    else:
        (tmp_path / "trunk.h5").touch()
        monkeypatch.setattr(evaluate, "read_lpips", lambda files, network: 1.0)
        monkeypatch.setattr(scores, "lpips", lambda w, a, b, n, s: abs(a - b).mean(axis=(1, 2, 3)))
        arguments += ["--lpips", tmp_path / "trunk.h5", tmp_path / "trunk.h5"]
    run(monkeypatch, *arguments)
    assert len(with_oracle) == 3


@pytest.mark.parametrize("lpips", [None, np.array([0.5, 0.25, 0.125], np.float32)])
def test_what_is_kept_of_an_orbit_comes_back_as_it_was(tmp_path, lpips):
    rng = np.random.default_rng(0)

    def numbers():
        psnr, ssim = rng.random((2, 3), np.float32)
        return PerMetric(psnr, ssim, None if lpips is None else lpips + rng.random())

    shape = None if lpips is None else ShapeScore(0.75, 1.5, 0.5)
    score = OrbitScore("cup", "cup/1", numbers(), numbers(), numbers(), shape)
    images = (rng.random((n, 4, 5, 3), np.float32) for n in (1, 2, 2, 2))
    done = Finished(score, (3, 0, 7), 1.25, True, Shown("cup/1", "good", *images))
    unfinished, orbit = Unfinished(tmp_path / "out"), OrbitName("cup", "cup/1")
    unfinished.write("0f" * 32, orbit, done)
    (tmp_path / "out.unfinished" / "letter.txt").write_text("keep me")
    found = unfinished.read("0f" * 32, orbit, "good")
    jax.tree.map(np.testing.assert_array_equal, plain(found), plain(done))
    assert unfinished.read("f0" * 32, orbit, "good") is None
    assert unfinished.read("0f" * 32, OrbitName("cup", "cup/0"), "good") is None
    unfinished.remove()
    assert [path.name for path in (tmp_path / "out.unfinished").iterdir()] == ["letter.txt"]


def broken(folder, fault):
    orbit = folder / "hat/0"
    if fault == "cut":
        data = (orbit / "render_0006.png").read_bytes()
        (orbit / "render_0006.png").write_bytes(data[: len(data) // 2])
    elif fault == "lacking":
        (orbit / "render_0004.png").unlink()
    elif fault == "short":
        write_object(folder, "hat/0", frames=7)
    elif fault == "small":
        write_object(folder, "hat/0", size=16)
    elif fault == "nan":
        meta = json.loads((orbit / "meta.json").read_text())
        meta["locations"][2]["transform_matrix"][0][3] = float("nan")
        (orbit / "meta.json").write_text(json.dumps(meta))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("cut", "hat/0/render_0006.png is damaged"),
        ("lacking", "hat/0/render_0004.png is missing"),
        ("short", "hat/0: an orbit of 7 frames; good was trained with 8"),
        ("small", "hat/0: frames of 16 px are too small, 32 are needed"),
        ("nan", "hat/0/meta.json: the pose of frame 2 has values that are not finite"),
    ],
)
def test_a_broken_orbit_is_named_before_any_is_sampled_and_nothing_is_written(
    with_oracle, monkeypatch, rendered, models, tmp_path, capsys, fault, said
):
    broken(rendered, fault)
    protocol = tmp_path / "large.toml"
    protocol.write_text('name = "large"\nversion = 1\n[images]\nresolution = 32\n')
    out = tmp_path / "out"
    with pytest.raises(SystemExit) as stop:
        run(
            *(monkeypatch, rendered, "--weights", models[0], "--out", out),
            *("--protocol", protocol),
        )
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ") and said in error
    assert not with_oracle and not out.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"rendered", "large.toml"}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{tmp}/none"], "no folder {tmp}/none"),
        (["{tmp}/mine"], "has no rendered orbits"),
        (["{tmp}"], "cup/0 lies deeper than an object's orbit; give the folder of objects: {tmp}/"),
        (["{data}", "--protocol", "obits"], "no protocol obits"),
        (["{data}", "--weights"], "--weights names no model"),
        (["{data}", "--weights", "{tmp}/none"], "no checkpoint at {tmp}/none"),
        (["{data}", "--weights", "{tmp}/unet"], "holds no lgm, no image tower; give RUN/model"),
        (["{data}", "--labels", "one", "two"], "--labels has 2 names for 1 models"),
        (["{data}", "--out", "{tmp}/mine"], "is or holds letter.txt"),
        (["{data}", "--lpips", "{tmp}/a.h5", "{tmp}/b.h5"], "no file {tmp}/a.h5"),
        (["{data}", "--protocol", "{tmp}/lacks.toml"], "lacks 1 of 2 objects of the protocol: pot"),
        (["{data}", "--protocol", "{tmp}/orbits.toml"], "hat has 1 orbits; the protocol asks for"),
        (
            ["{data}", "--protocol", "{tmp}/frames.toml"],
            "views.frames lists 3, up to 4; good makes",
        ),
        (["{data}", "--protocol", "{tmp}/window.toml"], "smaller than the protocol's SSIM window"),
    ],
)
def test_a_refusal_is_one_line_and_status_2(
    with_oracle, monkeypatch, rendered, models, tiny, tmp_path, capsys, arguments, said
):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    save_named(tmp_path, tiny, "unet", lgm=None, clip=None)
    for name, fields in {
        "lacks": '[objects]\nnames = ["cup", "pot"]',
        "orbits": "[objects]\norbits = [1]",
        "frames": "[views]\nframes = [0, 2, 4]",
        "window": "[metrics]\nssim_window = 17",
    }.items():
        (tmp_path / f"{name}.toml").write_text(f'name = "x"\nversion = 1\n{fields}\n')
    filled = [a.format(tmp=tmp_path, data=rendered) for a in arguments]
    for name, value in (("--weights", models[0]), ("--out", tmp_path / "out")):
        filled += [] if name in filled else [name, str(value)]
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, *filled)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ")
    assert said.format(tmp=tmp_path) in error
    assert not with_oracle and not (tmp_path / "out").exists()
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


def test_a_model_that_makes_nothing_finite_is_named_and_the_earlier_result_stays(
    with_oracle, monkeypatch, rendered, models, tmp_path, capsys
):
    arguments = (rendered, "--weights", models[0], "--out", tmp_path / "out")
    run(monkeypatch, *arguments)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    monkeypatch.setitem(ERRORS, "good", (np.nan, 0.1))
    with pytest.raises(SystemExit):
        run(monkeypatch, *arguments)
    assert "makes views of cup/0 that are not finite" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
