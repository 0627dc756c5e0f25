"""train.py from end to end, at the smallest size: train, stop, resume, refuse."""

import dataclasses
import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import chex
import jax
import numpy as np
import optax
import pytest
from jax.experimental.compilation_cache import compilation_cache

import train
from o3d_jax.cli import read_config
from o3d_jax.data.loader import training_batches
from o3d_jax.errors import InputError
from o3d_jax.nn.networks import build_networks, init_networks
from o3d_jax.run.checkpoints import RunCheckpoints
from o3d_jax.steps.train import init_state
from o3d_jax.types import Frozen, Params
from o3d_jax.weights import start
from o3d_jax.weights.checkpoint import Weights, load_model, named_parts, save_model
from o3d_jax.weights.start import start_weights


def run_key():
    """Always the same; each is used once."""
    return jax.random.key(6)


ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module", autouse=True)
def shared_compilation(quick_compilation, tmp_path_factory):
    """Runs that share a program compile it once."""
    jax.config.update("jax_compilation_cache_dir", str(tmp_path_factory.mktemp("xla")))
    compilation_cache.reset_cache()  # Whether there is one, JAX asks the first time only.
    yield
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()


def toy_networks(config):
    from support.toy_networks import LayeredToyVae, toy_system

    toys = toy_system(config).networks
    return dataclasses.replace(toys, vae=LayeredToyVae(config=config.model.vae), lpips=None)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """The tiny configuration with toy networks: what the script does is the same with any."""
    folder = tmp_path_factory.mktemp("runs")
    config = read_config(ROOT / "configs" / "tiny.py", ["--run-dir", str(folder)])
    networks = toy_networks(config)
    _, frozen = init_networks(networks, config.model, jax.random.key(1), True)
    vae = Weights(params=Params(unet=None, lgm=None), frozen=Frozen(vae=frozen.vae))
    save_model(folder / "vae", config, vae)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "build_networks", lambda model, lpips: networks)
        yield dataclasses.replace(config, weights=folder / "vae")


@pytest.fixture(scope="module")
def in_one_go(config):
    config = dataclasses.replace(config, name="one")
    train.train(config)
    return config


def test_a_run_leaves_log_pictures_checkpoints_and_a_model(in_one_go):
    folder = in_one_go.run_dir / "one"
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert all(np.isfinite(row["total"]) and row["gradient_norm"] > 0 for row in rows)
    assert all(row["tflops_per_second_per_device"] > 0 for row in rows)
    assert "unet" in (folder / "banner.txt").read_text()
    assert json.loads((folder / "exit.json").read_text())["reason"] == "done"
    assert (folder / "eval" / "000004.png").stat().st_size > 1000
    assert (folder / "curves.png").stat().st_size > 1000
    assert list(folder.glob("events.*"))
    model = load_model(folder / "model")
    assert model.config == in_one_go
    assert model.weights.params.unet is not None and model.weights.frozen.vae is not None


def test_a_resumed_run_ends_in_the_same_state_bit_for_bit(in_one_go):
    two = dataclasses.replace(in_one_go, name="two")
    train.train(dataclasses.replace(two, train=dataclasses.replace(two.train, steps=2)))
    train.train(two)
    one, resumed = (load_model(two.run_dir / name / "model").weights for name in ("one", "two"))
    chex.assert_trees_all_equal(one, resumed)
    lines = (two.run_dir / "two" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]  # None was done again.


def test_a_run_broken_off_after_its_checkpoint_logs_each_step_once(config, monkeypatch):
    three = dataclasses.replace(config, name="three")
    real, seen = train.draw_coin, []

    def stops_at_the_fourth(config, step):
        seen.append(step)
        if seen == [0, 1, 2, 3]:
            raise KeyboardInterrupt
        return real(config, step)

    monkeypatch.setattr(train, "draw_coin", stops_at_the_fourth)
    with pytest.raises(KeyboardInterrupt):
        train.train(three)
    train.train(three)
    assert seen == [0, 1, 2, 3, 2, 3]  # Checkpoints are of every second step.
    lines = (three.run_dir / "three" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]


def test_a_run_with_another_vae_is_refused(in_one_go):
    networks = toy_networks(in_one_go)
    _, frozen = init_networks(networks, in_one_go.model, jax.random.key(5), True)
    like = init_state(Params(unet={"w": np.ones(3)}, lgm=None), optax.sgd(1.0))
    checkpoints = RunCheckpoints(in_one_go.run_dir / "one" / "checkpoints", in_one_go, frozen)
    with pytest.raises(InputError, match="is a run of another config .*frozen networks"):
        checkpoints.restore(like)


def test_the_cosine_schedule_fixes_the_number_of_steps(config, monkeypatch):
    optim = dataclasses.replace(config.optim, schedule="cosine")
    cosine = dataclasses.replace(config, name="cosine", optim=optim)
    nothing = Frozen(vae=None)
    state = init_state(Params(unet={"w": np.ones(3)}, lgm=None), optax.sgd(1.0))
    saved = RunCheckpoints(cosine.run_dir / "cosine", cosine, nothing)
    saved.save(state, {})
    saved.close()
    longer = dataclasses.replace(cosine, train=dataclasses.replace(config.train, steps=9))
    with pytest.raises(InputError, match="train.steps 4 there, 9 here"):
        RunCheckpoints(cosine.run_dir / "cosine", longer, nothing).restore(state)


def test_a_run_of_another_config_is_refused(in_one_go):
    faster = dataclasses.replace(in_one_go.optim, learning_rate=0.5)
    other = dataclasses.replace(in_one_go, optim=faster)
    with pytest.raises(InputError, match=r"optim.learning_rate 0.001 there, 0.5 here"):
        train.train(other)


def test_weights_of_another_config_are_refused(config):
    with pytest.MonkeyPatch.context() as patch:  # The real VAE has other parameters than the toy.
        patch.setattr(train, "build_networks", build_networks)
        with pytest.raises(InputError, match=r"is of another config: \d+ parameters differ"):
            train.train(dataclasses.replace(config, name="other"))
    assert not (config.run_dir / "other").exists()


def test_a_run_starts_from_the_networks_that_were_trained_alone_beside_it(config):
    networks = toy_networks(config)
    beside = dataclasses.replace(config, name="beside", weights=None)
    folder = config.run_dir / "beside"
    vae = load_model(config.weights).weights.frozen
    one, _ = init_networks(networks, config.model, jax.random.key(11), True)
    two, _ = init_networks(networks, config.model, jax.random.key(12), True)
    none, nothing = Params(unet=None, lgm=None), Frozen(vae=None)
    save_model(folder / "vae" / "model", beside, Weights(params=none, frozen=vae))
    lgm = Weights(params=dataclasses.replace(none, lgm=one.lgm), frozen=nothing)
    save_model(folder / "lgm" / "model", beside, lgm)
    found = start_weights(beside, networks, run_key())
    chex.assert_trees_all_equal(found.params.lgm, one.lgm)
    fresh, _ = init_networks(networks, config.model, run_key(), True)
    chex.assert_trees_all_equal(found.params.unet, fresh.unet)
    unet = Weights(params=Params(unet=two.unet, lgm=None, clip=two.clip), frozen=nothing)
    save_model(folder / "unet" / "model", beside, unet)
    found = start_weights(beside, networks, run_key())
    expected = Weights(params=Params(unet=two.unet, lgm=one.lgm, clip=two.clip), frozen=vae)
    chex.assert_trees_all_equal(found, expected)


def test_the_networks_of_one_checkpoint_are_read_once(config, monkeypatch):
    networks, read = toy_networks(config), []
    params, frozen = init_networks(networks, config.model, jax.random.key(7), True)
    folder = config.run_dir / "all"
    save_model(folder, config, Weights(params=params, frozen=Frozen(vae=frozen.vae)))
    monkeypatch.setattr(start, "load_model", lambda path: read.append(path) or load_model(path))
    found = start_weights(dataclasses.replace(config, weights=folder), networks, run_key())
    chex.assert_trees_all_equal(found.params, params)
    assert read == [folder]


def part_of(config, part, **train):
    train = dataclasses.replace(config.train, part=part, **train)
    return dataclasses.replace(config, name="parts", weights=None, train=train)


def rows_of(config, name):
    """Steps of a run's log, without what depends on the clock."""
    lines = (config.folder / name).read_text().splitlines()
    timed = ("second", "share")
    return [
        {k: v for k, v in json.loads(line).items() if not any(t in k for t in timed)}
        for line in lines
    ]


class Ended(NamedTuple):
    """What a training has left."""

    weights: Weights
    log: list
    evaluations: list


def trained_twice(config):
    """In one go; and on from the checkpoint before the last, as if killed before that."""
    ends = []
    for _ in range(2):
        train.train(config)
        weights = load_model(config.folder / "model").weights
        ends.append(Ended(weights, rows_of(config, "log.jsonl"), rows_of(config, "eval.jsonl")))
        for gone in ("checkpoints/4", "model"):
            shutil.rmtree(config.folder / gone)
    save_model(config.folder / "model", config, ends[0].weights)
    return ends


@pytest.fixture(scope="module")
def parts(config):
    """How each part has ended twice, one after the other, in the folder of one run."""
    order = ("vae", "lgm", "unet")
    return {part: trained_twice(part_of(config, part, eval_every=2)) for part in order}


LEFT = {"vae": {"frozen_vae"}, "lgm": {"lgm"}, "unet": {"unet", "clip", "frozen_vae"}}
FIGURES = {"vae": "vae_psnr", "lgm": "lgm_psnr", "unet": "diffusion_6"}


@pytest.mark.parametrize("part", list(LEFT))
def test_a_resumed_training_of_a_part_ends_the_same_bit_for_bit(parts, part):
    one, resumed = parts[part]
    chex.assert_trees_all_equal(one.weights, resumed.weights)
    assert (resumed.log, resumed.evaluations) == (one.log, one.evaluations)
    assert [row["step"] for row in one.log] == [1, 2, 3, 4]
    assert [row["step"] for row in one.evaluations] == [2, 4]
    first, second = (row[FIGURES[part]] for row in one.evaluations)
    assert first != second
    assert {*named_parts(one.weights)} == LEFT[part]


def test_latents_of_a_vae_that_was_trained_have_the_deviation_that_svd_assumes(config, parts):
    vae, (one, _) = toy_networks(config).vae, parts["vae"]
    batches = training_batches(part_of(config, "vae"))
    images = np.concatenate([next(batches).batch.images for _ in range(64 // 8)])
    latents = vae.apply(one.weights.frozen.vae, images, method="encode").mean
    deviations = np.std(latents, axis=(0, 1, 2, 3))
    np.testing.assert_allclose(deviations * 0.18215, 1, rtol=1e-4)  # float32 sums.


def test_joint_training_goes_on_from_what_its_parts_have_left(config, parts):
    joint, networks = part_of(config, "joint"), toy_networks(config)
    vae, lgm, unet = (parts[part][0].weights for part in ("vae", "lgm", "unet"))
    trained = Params(unet=unet.params.unet, lgm=lgm.params.lgm, clip=unet.params.clip)
    begun = start_weights(joint, networks, run_key())
    expected = Weights(params=trained, frozen=Frozen(vae=vae.frozen.vae))
    chex.assert_trees_all_equal(begun, expected)

    train.train(joint)
    ended = load_model(joint.folder / "model").weights
    chex.assert_trees_all_equal(ended.frozen, expected.frozen)
    # A few steps of 1e-3 and less away from there, and farther from fresh ones.
    moved = jax.tree.map(lambda a, b: np.abs(a - b).max(), ended.params, trained)
    assert 1e-5 < max(jax.tree.leaves(moved)) < 0.01
    (row,) = rows_of(joint, "eval.jsonl")
    assert {"diffusion_0.2", "lgm_psnr", "views_psnr", "renders_psnr", "copied_psnr"} < set(row)


def test_every_process_makes_the_same_vae_of_what_was_trained(config, monkeypatch):
    """Also those that write nothing."""
    networks = toy_networks(config)
    _, frozen = init_networks(networks, config.model, jax.random.key(1), True)
    state = SimpleNamespace(ema=SimpleNamespace(vae=frozen.vae))
    system = SimpleNamespace(config=config, networks=networks)
    first = train._scaled_vae(system, state)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    chex.assert_trees_all_equal(train._scaled_vae(system, state), first)


def test_weights_of_another_meaning_are_refused_though_their_shapes_agree(config):
    networks = toy_networks(config)
    lgm = dataclasses.replace(config.model.lgm, positions="ray")
    model = dataclasses.replace(config.model, lgm=lgm)
    other = dataclasses.replace(config, name="other", model=model)
    params, frozen = init_networks(networks, config.model, jax.random.key(3), True)
    folder = config.run_dir / "whole"
    save_model(folder, other, Weights(params=params, frozen=Frozen(vae=frozen.vae)))
    with pytest.raises(InputError, match="another config: model.lgm.positions 'ray' there, 'free'"):
        start_weights(dataclasses.replace(config, weights=folder), networks, run_key())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["configs/none.py"], "no config file configs/none.py"),
        (["configs/tiny.py", "--optim.learning-rat", "1"], "did you mean --optim.learning-rate?"),
        (["configs/tiny.py", "--train.steps", "many"], "invalid literal for int"),
        (["configs/tiny.py", "--model.image-size", "20"], "image_size 20 is not a multiple of 16"),
        (["configs/tiny.py", "--weights", "nowhere"], "no checkpoint at"),
        (["configs/tiny.py", "--train.fsdp", "3"], "train.batch_size 8 is not a multiple of"),
        (["configs/tiny.py", "--train.save-every", "0"], "train.save_every 0 must be at least 1"),
        (["configs/tiny.py", "--model.lgm.num-heads", "7"], "num_heads 7 does not divide 16"),
        (["configs/tiny.py", "--run-dir", "train.py"], "cannot write to"),
        (["configs/tiny.py", "--name", "a/../b"], "name 'a/../b'"),
        (["--name", "x"], "no config file"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message):
    command = [sys.executable, "train.py", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert len(done.stderr.strip().splitlines()) == 1 and message in done.stderr
