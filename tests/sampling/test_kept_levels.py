"""Runs that keep their levels: killed and resumed, and branched; with toy networks."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.__main__ import main as o3d
from o3d_jax.sampling import loop
from o3d_jax.sampling.branch import OF_THIS_RESULT
from o3d_jax.sampling.kept import load_levels, load_state, save_level
from o3d_jax.steps.sample import LoopState
from o3d_jax.types import Gaussians, Maps
from support.toy_sampling import picture, save_toy, use_toys

ROOT = Path(__file__).parents[2]
LEVELS = 5
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a toy model, an image, and a whole run in out/brick."""
    folder = tmp_path_factory.mktemp("kept")
    save_toy(folder / "toy")
    picture(folder)
    with pytest.MonkeyPatch.context() as patch:
        use_toys(patch.setattr)
        o3d(["sample", *words(folder)])
    return folder


@pytest.fixture(autouse=True)
def toys(monkeypatch, tmp_path):
    use_toys(monkeypatch.setattr)
    monkeypatch.setenv("PATH", str(tmp_path / "no-ffmpeg"))


def words(folder, out="out", seed=5):
    options = ["--checkpoint", folder / "toy", "--seed", seed, "--elevation", -3]
    shown = ["--keep-levels", "--orbit-size", 16]
    return [str(w) for w in (folder / "brick.png", "--out", folder / out, *options, *shown)]


def bytes_of(folder, without=("manifest.json",)):
    """All files, and the manifest without what depends on the clock and on the place."""
    paths = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    found = {path: (folder / path).read_bytes() for path in paths if path not in without}
    manifest = json.loads((folder / "manifest.json").read_text())
    return found | {n: manifest[n] for n in ("seed", "config", "elevation", "feedback")}


def refused(*arguments):
    with pytest.raises(SystemExit) as stop:
        o3d(["sample", *(str(argument) for argument in arguments)])
    return stop.value.code == 2


def test_a_run_killed_while_it_writes_a_level_goes_on_to_the_same_bits(place, capfd):
    level = random.randrange(LEVELS)
    done = subprocess.run(
        [
            *(sys.executable, str(ROOT / "tests" / "support" / "toy_sampling.py"), str(level)),
            *words(place, "killed"),
        ],
        env=os.environ
        | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "JAX_DISABLE_MOST_OPTIMIZATIONS": "True"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == -9, done.stderr
    begun = place / "killed" / "brick.unfinished" / "levels"
    assert len(load_levels(begun)) == level and not (place / "killed" / "brick").exists()
    o3d(["sample", "--resume", str(place / "killed" / "brick")])
    assert f"{level}/{LEVELS}" in capfd.readouterr().err or level == 0  # It did not begin anew.
    assert bytes_of(place / "killed" / "brick") == bytes_of(place / "out" / "brick")
    assert not begun.parent.exists()


def test_a_branch_at_level_0_with_the_same_seed_is_the_original(place):
    original = place / "out" / "brick"
    o3d(["sample", "--branch", str(original), "--level", "0", "--seed", "5"])
    # These have names of runs in them.
    compared = ("manifest.json", "curves.svg", "curves.png", "branch.png")
    branch = bytes_of(place / "out" / "brick-level0-seed5", compared)
    assert branch == bytes_of(original, compared)
    assert len([name for name in branch if name.startswith("levels/")]) == LEVELS + 1


@pytest.mark.parametrize(
    ("name", "chosen"),
    [
        ("seed9", ["--seed", "9"]),
        ("guidance7", ["--guidance", "7"]),
        ("none", ["--feedback", "none"]),
    ],
)
def test_a_branch_is_the_original_before_its_level_and_another_from_it_on(place, name, chosen):
    original = place / "out" / "brick"
    o3d(["sample", "--branch", str(original), "--level", "2", *chosen])
    folder = place / "out" / f"brick-level2-{name}"
    old, new = (load_levels(f / "levels") for f in (original, folder))
    assert [a.sigma for a in old] == [a.sigma for a in new] and len(old) == LEVELS
    for i, (a, b) in enumerate(zip(old, new, strict=True)):
        assert np.array_equal(a.latents, b.latents) == (i < 2), i
    for level in new[2:]:
        assert np.any(level.guide) == (name in ("seed9", "guidance7"))
    assert (folder / "branch.png").is_file() and "levels/02.npz" in bytes_of(folder)
    assert json.loads((folder / "manifest.json").read_text())["branch"]["level"] == 2


def test_seeds_guidance_feedback_and_levels_share_one_compiled_program(place):
    sampler = loop.read_sampler(place / "toy")
    image = np.full((16, 16, 3), 0.5, np.float32)

    def run(levels, guidance, feedback, seed):
        sample = loop.with_choices(sampler.config.sample, levels, guidance)
        recipe = loop.Recipe(sample, seed, 10.0, feedback)
        return list(loop.run_levels(sampler, recipe, image))

    assert len(run(2, 2.0, "ccm", 1)) == 2
    before = loop.sample_step._cache_size(), loop.sample_prepare._cache_size()
    assert len(run(3, 5.0, "none", 7)) == 3 and len(run(2, None, "rgb+ccm", 0)) == 2
    assert (loop.sample_step._cache_size(), loop.sample_prepare._cache_size()) == before


def test_noise_anew_has_the_level_s_deviation_and_is_another_for_another_seed(place):
    level = load_levels(place / "out" / "brick" / "levels")[1]
    sampler = loop.read_sampler(place / "toy")
    image = np.zeros((16, 16, 3), np.float32)
    recipe = loop.Recipe(sampler.config.sample, 0, 10.0, "ccm")
    state = next(loop.run_levels(sampler, recipe, image)).state
    drawn = [
        np.asarray(loop.noised_anew(level, state, 3.0, seed).x[0]) - level.latents
        for seed in range(40)
    ]
    values = np.stack(drawn) / 3
    # 10,240 standard normal numbers: their mean is within 0.01 (1 sigma), their deviation 0.007.
    assert abs(values.mean()) < 0.05 and abs(values.std() - 1) < 0.035
    assert np.abs(drawn[0] - drawn[1]).min() > 0


def test_what_cannot_be_resumed_or_branched_is_refused_in_one_line(place, capsys, tmp_path):
    original = place / "out" / "brick"
    shutil.copytree(original, tmp_path / "lean" / "brick")
    shutil.rmtree(tmp_path / "lean" / "brick" / "levels")
    shutil.copytree(original, tmp_path / "bad" / "brick")
    (tmp_path / "bad" / "brick" / "levels" / "03.npz").write_bytes(b"PK")
    shutil.copytree(original, tmp_path / "old" / "brick")
    manifest = json.loads((original / "manifest.json").read_text())
    del manifest["up"]
    (tmp_path / "old" / "brick" / "manifest.json").write_text(json.dumps(manifest))
    out = ("--out", tmp_path / "lean")
    cases = {
        (*words(place), *out): "brick is there, without its levels; give --overwrite",
        ("--resume", original): "no run broke off at",
        ("--branch", original, "--level", LEVELS): f"--level {LEVELS} is not in 0 .. {LEVELS - 1}",
        ("--branch", original, "--level", 1, "--seed", -1): "--seed -1 is not in",
        ("--branch", original, "--level", 1, "--guidance", -1): "--guidance -1.0 is not in",
        ("--branch", tmp_path, "--level", 1): "holds no result",
        ("--branch", tmp_path / "lean" / "brick", "--level", 1): "--keep-levels --overwrite",
        ("--branch", tmp_path / "bad" / "brick", "--level", 1): "03.npz is damaged",
        ("--branch", tmp_path / "old" / "brick", "--level", 1): "brick is of an older version",
        ("--branch", original): "--level",
        ("--resume", "/"): "no run broke off at /",
    }
    for arguments, said in cases.items():
        before = sorted(place.rglob("*"))
        assert refused(*arguments), arguments
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, (arguments, error)
        assert sorted(place.rglob("*")) == before


def test_a_run_begun_with_other_settings_is_neither_gone_on_with_nor_lost(place, capsys):
    shutil.copytree(place / "out" / "brick" / "levels", place / "other/brick.unfinished/levels")
    order = place / "other" / "brick.unfinished" / "run.json"
    manifest = json.loads((place / "out" / "brick" / "manifest.json").read_text())
    begun = {"words": words(place, "other"), "settings": manifest | {"seed": 4}}
    order.write_text(json.dumps(begun))
    assert refused(*words(place, "other"))
    assert (
        "was begun with another seed; give all of it as it was and --resume"
        in capsys.readouterr().err
    )
    assert order.is_file()
    assert refused("--resume", place / "other")
    said = capsys.readouterr().err
    assert f"no run broke off at {place / 'other'}; give {place / 'other' / 'brick'}" in said
    for damaged in ({}, begun | {"words": [1, 2]}, begun | {"words": None}):
        order.write_text(json.dumps(damaged))
        assert refused("--resume", place / "other" / "brick")
        assert "run.json is damaged" in capsys.readouterr().err


def test_results_are_known_from_inside_their_own_folders(place, monkeypatch, tmp_path):
    shutil.copytree(place / "out" / "brick", tmp_path / "out" / "brick")
    monkeypatch.chdir(tmp_path / "out" / "brick")
    o3d(["sample", "--branch", ".", "--level", str(LEVELS - 1)])
    beside = tmp_path / "out" / f"brick-level{LEVELS - 1}"
    assert json.loads((beside / "manifest.json").read_text())["branch"]["of"] == "brick"

    unfinished = tmp_path / "again" / "brick.unfinished"
    shutil.copytree(place / "out" / "brick" / "levels", unfinished / "levels")
    manifest = json.loads((place / "out" / "brick" / "manifest.json").read_text())
    settings = {n: v for n, v in manifest.items() if n not in OF_THIS_RESULT}
    order = [*words(place), "--out", str(tmp_path / "again")]
    (unfinished / "run.json").write_text(json.dumps({"words": order, "settings": settings}))
    monkeypatch.chdir(unfinished)
    o3d(["sample", "--resume", "."])
    assert bytes_of(tmp_path / "again" / "brick") == bytes_of(place / "out" / "brick")


def test_what_the_next_level_starts_from_is_kept_to_its_bits(tmp_path):
    """A run that is killed at a random level may be killed before there is anything to keep."""
    draw, v, n = np.random.default_rng(3), 3, 7

    def real(*shape):
        return draw.normal(size=shape).astype(np.float32)

    def pixels(*shape):
        return draw.integers(0, 256, shape, np.uint8)

    gaussians = Gaussians(
        means=jnp.asarray(real(n, 3)),
        scales=jnp.asarray(real(n, 3)),
        quats=jnp.asarray(real(n, 4)),
        opacities=jnp.asarray(real(n)),
        colors=jnp.asarray(real(n, 3)),
    )
    images = {name: pixels(v, 5, 6, 3) for name in ("views", "guide", "renders")}
    level = loop.Level(
        sigma=0.3, latents=real(v, 2, 4, 4), alpha=pixels(v, 5, 6), gaussians=gaussians, **images
    )
    maps = Maps(rgb=jnp.asarray(real(1, v, 5, 6, 3)), ccm=jnp.asarray(real(1, v, 5, 6, 3)))
    state = LoopState(x=jnp.asarray(real(1, v, 2, 4, 4)), maps=maps, guidance=jnp.asarray(real(v)))
    save_level(tmp_path, 0, loop.Found(level, state))
    chex.assert_trees_all_equal(load_state(tmp_path, 0), state)
