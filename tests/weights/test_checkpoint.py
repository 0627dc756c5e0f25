"""Checkpoints on disk: whole or refused, and nothing of others is deleted."""

import dataclasses
import errno
import json
import shutil

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.__main__ import main as o3d
from o3d_jax.config import Config, to_dict
from o3d_jax.errors import InputError, exit_on_input_error
from o3d_jax.types import Frozen, Params
from o3d_jax.weights.checkpoint import (
    Weights,
    config_from_dict,
    load_model,
    model_folder,
    save_model,
)


@pytest.fixture(scope="module")
def weights():
    draw = np.random.default_rng(0).normal
    return Weights(
        params=Params(
            unet={"params": {"conv": {"kernel": jnp.asarray(draw(size=(3, 5)), jnp.float32)}}},
            lgm={"params": {"bias": jnp.asarray(draw(size=7), jnp.float32)}},
        ),
        frozen=Frozen(vae={"params": {"scale": jnp.asarray(draw(size=(2, 1)), jnp.float32)}}),
    )


@pytest.fixture(scope="module")
def saved(tiny, weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model(folder, tiny, weights)
    return folder


def test_a_model_is_read_as_it_was_written(saved, tiny, weights):
    model = load_model(saved)
    assert model.config == tiny
    chex.assert_trees_all_equal(model.weights, weights)
    assert model.weights.params.clip is None and model.weights.frozen.lpips is None


def test_what_a_killed_process_left_of_a_model_is_removed_and_nothing_else(
    saved, tiny, weights, tmp_path
):
    half, aside, theirs = (tmp_path / f".model-{name * 8}" for name in "abc")
    shutil.copytree(saved / "weights", half / "weights.orbax-checkpoint-tmp")
    (half / "config.json").write_text("{")
    shutil.copytree(saved, aside / "model")
    theirs.mkdir()
    (theirs / "thesis.txt").write_text("keep me")
    save_model(tmp_path / "model", tiny, weights)
    assert sorted(tmp_path.iterdir()) == [aside, theirs, tmp_path / "model"]


def test_a_bundle_is_the_model_in_half_precision(tiny, weights, tmp_path):
    theirs = dataclasses.replace(
        tiny.data,
        source="mixed",
        rendered=(str(tmp_path / "orbits"),),
        shares=(1.0, 2.0),
        ids=tmp_path / "ids.txt",
        heldout=tmp_path / "heldout",
        cache=tmp_path / "cache",
    )
    here = dataclasses.replace(tiny, data=theirs, weights=tmp_path, run_dir=tmp_path)
    save_model(tmp_path / "model", here, weights)

    o3d(["weights", "bundle", str(tmp_path / "model"), str(tmp_path / "small")])
    model = load_model(tmp_path / "small")
    half = jax.tree.map(lambda a: np.asarray(a, jnp.bfloat16).astype(np.float32), weights)
    chex.assert_trees_all_equal(model.weights, half)
    for path in (tmp_path / "small").rglob("*"):  # It may be shipped: nothing of this machine.
        assert path.is_dir() or str(tmp_path).encode() not in path.read_bytes(), path


def cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def largest(folder):
    files = [path for path in (folder / "weights").rglob("*") if path.is_file()]
    return max(files, key=lambda path: path.stat().st_size)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda folder: flip(largest(folder)), "damaged or not whole"),
        (lambda folder: cut(largest(folder)), "damaged or not whole"),
        (lambda folder: (folder / "weights" / "_METADATA").unlink(), "damaged or not whole"),
        (lambda folder: (folder / "checksum").unlink(), "damaged or not whole"),
        (lambda folder: shutil.rmtree(folder / "weights"), "holds no model"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text('{"name"'), "is damaged"),
        (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\x00"), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "must be a group of fields"),
        (lambda folder: (folder / "config.json").write_text('{"a":' * 3000), "is damaged"),
        (lambda folder: (folder / "config.json").write_text("9" * 5000), "is damaged"),
        (shutil.rmtree, "no checkpoint at"),
    ],
)
def test_a_damaged_model_is_refused(saved, tmp_path, harm, said):
    folder = tmp_path / "model"
    shutil.copytree(saved, folder)
    harm(folder)
    with pytest.raises(InputError, match=said):
        load_model(folder)


def test_a_config_survives_json_and_its_mistakes_are_named(tiny):
    values = json.loads(json.dumps(to_dict(tiny)))
    assert config_from_dict(values) == tiny
    for change, said in [
        ({"sed": 1}, "no field 'sed'; the nearest is 'seed'"),
        ({"sample": {"solver": "rk4"}}, "config.sample.solver 'rk4' is none of euler, heun"),
        ({"sample": {"levels": 1}}, "sample.levels 1 must be at least 2"),
        ({"model": 3}, "config.model 3 must be a group of fields"),
        ({"run_dir": 3}, "config.run_dir 3 is no Path"),
        ({"weights": 3}, r"config.weights 3 is no pathlib.* \| None"),
        ({"weights": ["a"]}, r"config.weights \['a'\] is no"),
        ({"seed": True}, "config.seed True is no int"),
        ({"seed": 1.5}, "config.seed 1.5 is no int"),
        ({"model": {"remat": 1}}, "config.model.remat 1 is no bool"),
        ({"optim": {"learning_rate": "1e-4"}}, "config.optim.learning_rate '1e-4' is no float"),
        ({"train": {"trackers": ["wandb", "mlflow"]}}, "config.train.trackers .* is no tuple"),
        ({"data": {"elevation": [1]}}, r"config.data.elevation \[1\] is no tuple"),
        ({"data": {"elevation": [1, "2"]}}, "config.data.elevation .* is no tuple"),
    ]:
        with pytest.raises(InputError, match=said):
            config_from_dict(values | change)


def test_what_others_put_there_is_never_replaced(tmp_path, tiny, weights):
    (tmp_path / "thesis.txt").write_text("keep me")
    for refused in (
        lambda: save_model(tmp_path, tiny, weights),
        lambda: save_model(tmp_path / "thesis.txt", tiny, weights),
    ):
        with pytest.raises(InputError, match="thesis.txt"):
            refused()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_weights_are_replaced_only_where_a_whole_model_is(tmp_path, tiny, weights):
    """What is below `weights` has names that only orbax knows."""
    folder = tmp_path / "model"
    save_model(folder, tiny, weights)
    (folder / "report.txt").write_text("of an earlier conversion")
    save_model(folder, tiny, weights)
    assert sorted(p.name for p in folder.iterdir()) == ["checksum", "config.json", "weights"]
    (folder / "checksum").unlink()
    with pytest.raises(InputError, match=r"no earlier result: it is or holds weights/"):
        save_model(folder, tiny, weights)
    load = sorted(p.name for p in (folder / "weights").iterdir())
    assert load  # Nothing was deleted.


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "a/b"), "a/b: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), "error: No space left on device; make"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "Disk quota exceeded; make room, or"),
    ],
)
def test_a_full_disk_is_one_line_and_other_faults_keep_their_traceback(capsys, fault, said):
    with pytest.raises(SystemExit) as exit, exit_on_input_error():
        raise fault
    assert exit.value.code == 2
    line = capsys.readouterr().err
    assert said in line and line.count("\n") == 1
    with pytest.raises(OSError, match="Input/output"), exit_on_input_error():
        raise OSError(errno.EIO, "Input/output error")


def test_a_disk_that_fills_while_orbax_writes_is_told_from_its_other_faults(tmp_path, tiny):
    said = 'RESOURCE_EXHAUSTED: Error writing "a/0": Failed to write 229581 bytes: '
    with pytest.raises(OSError, match="No space left") as error:
        with model_folder(tmp_path / "model", tiny):
            raise ValueError(said + "No space left on device [os_error_code='28']")  # As seen.
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(tmp_path / "model"))
    with pytest.raises(ValueError, match="OUT_OF_RANGE"), model_folder(tmp_path / "model", tiny):
        raise ValueError("OUT_OF_RANGE")
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_contradicts_itself_names_the_field():
    good = Config(name="x")
    model = good.model
    bad = [
        (lambda: dataclasses.replace(good.data, objects=0), "data.objects 0"),
        (lambda: dataclasses.replace(good.data, elevation=(30.0, -5.0)), "data.elevation"),
        (lambda: dataclasses.replace(good.camera, radius=-1.0), "camera.radius -1"),
        (lambda: dataclasses.replace(good.camera, fov=180.0), "camera.fov 180"),
        (lambda: dataclasses.replace(good.train, steps=-1), "train.steps -1"),
        (lambda: dataclasses.replace(good.train, batch_size=-8), "train.batch_size -8"),
        (lambda: dataclasses.replace(good.train, fsdp=-1), "train.fsdp -1"),
        (lambda: dataclasses.replace(good.optim, learning_rate=float("nan")), "learning_rate nan"),
        (lambda: dataclasses.replace(good.optim, clip_norm=0.0), "optim.clip_norm 0"),
        (lambda: dataclasses.replace(good.diffusion, feedback_probability=7.0), "7.0 is not in"),
        (lambda: dataclasses.replace(good.diffusion, condition_dropout=0.5), "dropout 0.5"),
        (lambda: dataclasses.replace(model.unet, norm_num_groups=3), "does not divide 320"),
        (lambda: dataclasses.replace(model.unet, num_attention_heads=(3, 7, 9, 11)), "divide 320"),
        (lambda: dataclasses.replace(model.unet, num_attention_heads=(5, 10)), "of the 4 scales"),
        (lambda: dataclasses.replace(model.lgm, num_heads=7), "num_heads 7 does not divide"),
        (lambda: dataclasses.replace(model.lgm, up_channels=(64,)), "up_attention"),
        (lambda: dataclasses.replace(model.lgm, input_size=250), "input_size 250"),
        (lambda: dataclasses.replace(model.lgm, num_views=0), "lgm.num_views 0"),
        (lambda: dataclasses.replace(model.clip, patch_size=9), "patch_size 9"),
        (lambda: dataclasses.replace(model.vae, scaling_factor=0.0), "scaling_factor 0"),
        (lambda: dataclasses.replace(model, image_size=-16), "model.image_size -16"),
        (lambda: dataclasses.replace(good, seed=-1), "seed -1"),
        (lambda: dataclasses.replace(good, name="../x"), "name '../x'"),
    ]
    for make, said in bad:
        with pytest.raises(ValueError, match=said):
            make()
