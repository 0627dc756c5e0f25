"""Networks one after another, and levels that make no object; with toy networks."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.__main__ import main as o3d
from o3d_jax.config import SampleConfig
from o3d_jax.errors import InputError
from o3d_jax.sampling import in_turn, loop
from o3d_jax.sampling.curves import figures_of
from o3d_jax.sampling.in_turn import level_in_turn, prepare_in_turn, with_network
from o3d_jax.sampling.kept import load_levels
from o3d_jax.sampling.stages import Stages
from o3d_jax.sampling.unfinished import sample_kept
from o3d_jax.steps import sample
from o3d_jax.weights.checkpoint import load_model, save_model
from support.toy_sampling import picture, save_toy, toy, use_toys

LEVELS = 5
pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def system():
    return toy()


@pytest.fixture(scope="module")
def inputs(system):
    image = jnp.asarray(np.random.default_rng(2).uniform(size=(1, 16, 16, 3)), jnp.float32)
    cameras = loop.orbit_cameras(system.config, 7.0, loop.view_azimuths(system.config))
    return image, jax.tree.map(lambda a: a[None], cameras)


def key():
    return jax.random.key(3)  # A new one each time: none may be used twice.


def close(found, expected):
    """Within the rounding of float32 in programs that are fused otherwise; x starts at 700."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        scale = max(1.0, float(np.abs(b).max()))
        np.testing.assert_allclose(a / scale, b / scale, rtol=0, atol=2e-5)


def test_networks_in_turn_find_what_whole_programs_do(system, inputs):
    image, cameras = inputs
    on_host = dataclasses.replace(
        jax.tree.map(np.asarray, system),
        networks=dataclasses.replace(system.networks, offload=True),
    )
    condition, state = sample.sample_prepare(system, image, key())
    close(prepare_in_turn(on_host, image, key()), (condition, state))
    for sigmas in ((700.0, 20.0), (20.0, 0.5)):
        given = (condition, cameras, state, *map(jnp.float32, sigmas))
        whole = sample.sample_step(system, *given)
        close(level_in_turn(on_host, *given), whole)
        state, _ = whole


def test_each_program_is_given_its_own_network_and_no_other(system, inputs, monkeypatch):
    image, cameras = inputs
    seen = []

    def watched(name, program):
        def run(model, *rest):
            params, frozen = model.params, model.frozen
            there = {n: getattr(params, n) for n in ("unet", "lgm", "clip")}
            there |= {f"frozen {n}": getattr(frozen, n) for n in ("vae", "clip")}
            seen.append((name, [n for n, part in there.items() if part is not None]))
            return program(model, *rest)

        return run

    for name in ("embed", "begin", "denoise", "decode", "object"):
        program = getattr(in_turn, f"{name}_program")
        monkeypatch.setattr(in_turn, f"{name}_program", watched(name, program))
    condition, state = prepare_in_turn(system, image, key())
    level_in_turn(system, condition, cameras, state, jnp.float32(700.0), jnp.float32(20.0))
    alone = {"embed": "clip", "begin": "frozen vae", "denoise": "unet"}
    alone |= {"decode": "frozen vae", "object": "lgm"}
    assert seen == [(name, [network]) for name, network in alone.items()]
    frozen = dataclasses.replace(
        system,
        params=dataclasses.replace(system.params, clip=None),
        frozen=dataclasses.replace(system.frozen, clip=system.params.clip),
    )
    kept = with_network(frozen, "clip")
    assert kept.frozen.clip is system.params.clip and kept.frozen.vae is None


def test_objects_are_made_at_every_nth_level_from_the_first_on_and_at_the_last():
    def numbers(levels, every):
        found = sample.reconstructing(SampleConfig(levels=levels, reconstruct_every=every))
        return np.flatnonzero(found).tolist()

    assert numbers(5, 1) == [0, 1, 2, 3, 4]
    assert numbers(6, 2) == [0, 2, 4, 5] and numbers(7, 3) == [0, 3, 6]
    assert numbers(4, 9) == [0, 3]


@pytest.fixture(scope="module")
def skipping(system):
    every = dataclasses.replace(system.config.sample, levels=4, reconstruct_every=2)
    return dataclasses.replace(system, config=dataclasses.replace(system.config, sample=every))


def test_between_objects_latents_move_on_and_the_feedback_stays(skipping, inputs):
    image, cameras = inputs
    condition, state = sample.sample_prepare(skipping, image, key())
    sigmas = sample.noise_levels(skipping.config.sample)
    denoise = jax.jit(sample.denoise_level)
    maps = []
    for i, makes in enumerate([True, False, True, True]):
        given = (condition, cameras, state, sigmas[i], sigmas[i + 1])
        if makes:
            state, estimate = sample.sample_step(skipping, *given)
        else:
            moved = denoise(skipping, *given)
            state = dataclasses.replace(state, x=moved.x)
        maps.append(np.asarray(state.maps.rgb))
    assert np.array_equal(maps[0], maps[1]) and not np.array_equal(maps[1], maps[2])
    close(sample.generate(skipping, image, cameras, key()), estimate)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A toy model, and a run of it that makes an object at every second level, offloaded."""
    folder = tmp_path_factory.mktemp("skipping")
    save_toy(folder / "toy")
    words = [picture(folder), "--out", folder / "out", "--checkpoint", folder / "toy"]
    words += ["--keep-levels", "--orbit-size", "16", "--reconstruct-every", "2", "--offload"]
    with pytest.MonkeyPatch.context() as patch:
        use_toys(patch.setattr)
        o3d(["sample", *map(str, words)])
    return folder


def test_levels_without_an_object_keep_latents_and_show_the_last_object(place):
    levels = load_levels(place / "out" / "brick" / "levels")
    assert [level.reconstructed for level in levels] == [True, False, True, False, True]
    for before, level in zip(levels[:-1], levels[1:], strict=True):
        assert not np.array_equal(before.latents, level.latents)
        assert np.array_equal(before.views, level.views) != level.reconstructed
        # What was fed back is what the last object looked like.
        assert np.abs(level.guide.astype(int) - before.renders).max() <= 1
    manifest = json.loads((place / "out" / "brick" / "manifest.json").read_text())
    assert manifest["config"]["sample"]["reconstruct_every"] == 2
    assert len(figures_of([level for level in levels if level.reconstructed])) == 3


@pytest.mark.parametrize("there", [2, 3])
def test_a_run_goes_on_behind_a_level_with_an_object_and_one_without(
    place, monkeypatch, tmp_path, there
):
    use_toys(monkeypatch.setattr)
    whole = place / "out" / "brick" / "levels"
    manifest = json.loads((place / "out" / "brick" / "manifest.json").read_text())
    for number in range(there):
        shutil.copy(whole / f"{number:02}.npz", tmp_path)
    model = loop.read_sampler(place / "toy", offload=True)
    every = dataclasses.replace(model.config.sample, reconstruct_every=2)
    recipe = loop.Recipe(every, 0, manifest["elevation"], manifest["feedback"])
    with np.load(whole / "image.npz") as image:
        sample_kept(model, recipe, image["image"], tmp_path, Stages({}))
    for number in range(LEVELS):
        a, b = (dict(np.load(f / f"{number:02}.npz")) for f in (whole, tmp_path))
        assert a.keys() == b.keys() and all(np.array_equal(a[n], b[n]) for n in a), number


def test_a_model_to_sample_has_the_stored_values_and_no_lpips(place, monkeypatch):
    use_toys(monkeypatch.setattr)
    read, whole = loop.read_sampler(place / "toy"), load_model(place / "toy").weights
    assert whole.frozen.lpips is not None and read.frozen.lpips is None
    found = (read.params, read.frozen)
    stored = (whole.params, dataclasses.replace(whole.frozen, lpips=None))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(stored), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not read.networks.offload and loop.read_sampler(place / "toy", True).networks.offload


def test_half_stays_half_only_where_memory_is_short(place, monkeypatch, tmp_path):
    use_toys(monkeypatch.setattr)
    whole = load_model(place / "toy")
    save_model(tmp_path / "half", whole.config, whole.weights, "float16")

    def types(model, matrices):
        found = jax.tree.leaves((model.params, model.frozen))
        return {a.dtype.name for a in found if (a.ndim > 1) == matrices}

    read = loop.read_sampler(tmp_path / "half")
    assert types(read, True) == types(read, False) == {"float32"}  # As the toys compute.
    read = loop.read_sampler(tmp_path / "half", offload=True)
    assert types(read, True) == {"float16"} and types(read, False) == {"float32"}


def test_an_object_at_every_level_is_the_most():
    with pytest.raises(InputError, match="--reconstruct-every 0 is below 1"):
        loop.with_choices(SampleConfig(), reconstruct_every=0)
