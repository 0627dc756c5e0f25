"""`compare` without torch: dumps are written here by hand, as dump_script.py does."""

import ast
import dataclasses
import math
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from support.dumps import write_dump

B, V = 2, 3


@pytest.fixture(scope="module")
def model(tiny):
    """The tiny model's image tower, with no weight at zero; a denoiser in name only."""
    from o3d_jax.types import Frozen, Params
    from o3d_jax.weights.checkpoint import Model, Weights

    rng = np.random.default_rng(0)
    images = jax.ShapeDtypeStruct((B, 16, 16, 3), np.float32)
    shapes = jax.eval_shape(image_tower(tiny).init, jax.random.key(0), images)

    def draw(leaf):
        fan_in = math.prod(leaf.shape[:-1])
        return (rng.standard_normal(leaf.shape) / math.sqrt(fan_in)).astype(np.float32)

    params = Params(unet={"params": {"unet": {}}}, lgm=None)
    frozen = Frozen(vae=None, clip=jax.tree.map(draw, shapes))
    return Model(config=tiny, weights=Weights(params=params, frozen=frozen))


def image_tower(config):
    from o3d_jax.nn.networks import build_networks

    return build_networks(config.model).clip


PIXELS = np.random.default_rng(1).standard_normal((B, 3, 16, 16), np.float32)
LAYERS = [
    "vision_model.embeddings.patch_embedding",
    "vision_model.embeddings",
    "vision_model.pre_layrnorm",
    "vision_model.encoder.layers.0.self_attn.q_proj",
    "vision_model.encoder.layers.0.self_attn",
    "vision_model.encoder.layers.0.mlp.fc1",
    "vision_model.encoder.layers.0.mlp.fc2",
    "vision_model.encoder.layers.0",
    "visual_projection",
]
INSIDE = "vision_model.encoder.layers.0.mlp.activation_fn"


@pytest.fixture(scope="module")
def clip_outputs(model):
    """Those of the image tower, by torch name and in torch's layout; one has no counterpart."""
    from o3d_jax.nn.clip import CLIP_MEAN, CLIP_STD

    images = np.moveaxis(PIXELS, 1, -1) * np.array(CLIP_STD) + np.array(CLIP_MEAN)
    _, state = image_tower(model.config).apply(
        model.weights.frozen.clip, jnp.asarray(images, jnp.float32), capture_intermediates=True
    )
    outputs = []
    for name in LAYERS:
        found = state["intermediates"]
        for part in name.replace("layers.0", "layers_0").split("."):
            found = found[part]
        array = np.asarray(found["__call__"][0])
        outputs.append((name, np.moveaxis(array, -1, 1) if array.ndim == 4 else array))
    outputs.insert(6, (INSIDE, np.zeros((B, 5, 24))))
    return outputs


@pytest.fixture
def clip_dump(clip_outputs, tmp_path):
    inputs = {"pixel_values": PIXELS}
    return write_dump(tmp_path / "dump", "image_encoder", inputs, clip_outputs, stride=7)


def run(monkeypatch, capsys, *arguments):
    """Exit status, and the lines of both streams."""
    from o3d_jax.__main__ import main as o3d

    with pytest.raises(SystemExit) as exit:
        o3d(["weights", "compare", *map(str, arguments)])
    streams = capsys.readouterr()
    return exit.value.code, streams.out.splitlines(), streams.err.splitlines()


def with_fc1_moved(model):
    """The model with one weight changed, in the middle of the image tower."""

    def move(keys, leaf):
        if "fc1" in jax.tree_util.keystr(keys) and leaf.ndim == 2:
            leaf = leaf.copy()
            leaf[0, 0] += 5
        return leaf

    frozen = model.weights.frozen
    clip = jax.tree_util.tree_map_with_path(move, frozen.clip)
    weights = dataclasses.replace(model.weights, frozen=dataclasses.replace(frozen, clip=clip))
    return dataclasses.replace(model, weights=weights)


def test_command_tells_agreement_from_difference_and_names_the_first(
    model, clip_dump, tmp_path, monkeypatch, capsys
):
    from o3d_jax.types import Params
    from o3d_jax.weights.checkpoint import Weights, save_model

    frozen = model.weights.frozen
    model = dataclasses.replace(
        model, weights=Weights(params=Params(unet=None, lgm=None), frozen=frozen)
    )
    save_model(tmp_path / "same", model.config, model.weights)
    status, lines, _ = run(monkeypatch, capsys, tmp_path / "same", clip_dump)
    assert status == 0
    # Torch's order, and what has no counterpart is said: here the activation, there what the dump
    # lacks.
    assert [line.split()[0] for line in lines[: len(LAYERS)]] == LAYERS
    assert f"only in torch: {INSIDE.replace('0', '#')}" in lines
    assert "only in ours: vision_model.post_layernorm" in lines
    assert lines[-1].startswith(f"all {len(LAYERS)} modules agree")

    save_model(tmp_path / "other", model.config, with_fc1_moved(model).weights)
    status, lines, _ = run(monkeypatch, capsys, tmp_path / "other", clip_dump)
    assert status == 1
    wrong = [line.split()[0] for line in lines if "DIFFERS" in line]
    assert wrong == [LAYERS[5], *LAYERS[6:]]
    assert [line.split()[0] for line in lines if line.endswith("FIRST")] == [LAYERS[5]]
    assert lines[-1].startswith(f"first difference: {LAYERS[5]}, relative error ")
    assert "the 5 modules before it agree" in lines[-1]

    status, _, errors = run(monkeypatch, capsys, tmp_path / "same", tmp_path / "nowhere")
    assert status == 2
    assert len(errors) == 1
    assert str(tmp_path / "nowhere") in errors[0]
    status, _, errors = run(monkeypatch, capsys, tmp_path / "same", clip_dump, "--tolerance", "-1")
    assert (status, len(errors)) == (2, 1)


def test_an_output_that_is_not_finite_differs(clip_outputs, model, tmp_path):
    from o3d_jax.weights.pytorch.compare import compare, first_difference
    from o3d_jax.weights.pytorch.dump import Dump
    from o3d_jax.weights.pytorch.replay import replay

    name, array = clip_outputs[1]
    outputs = [(name, np.where(np.arange(array.size).reshape(array.shape) == 3, np.nan, array))]
    folder = write_dump(tmp_path / "dump", "image_encoder", {"pixel_values": PIXELS}, outputs)
    dump = Dump(folder)
    assert first_difference(compare(replay(model, dump), dump), tolerance=1e9) == 0


def test_another_order_counts_as_a_difference_and_is_named(model, clip_outputs, tmp_path):
    from o3d_jax.weights.pytorch.compare import compare, comparison_lines, first_difference
    from o3d_jax.weights.pytorch.dump import Dump
    from o3d_jax.weights.pytorch.replay import replay

    outputs = [
        (name, np.moveaxis(array, -1, 1) if name == LAYERS[2] else array)
        for name, array in clip_outputs
    ]
    dump = Dump(write_dump(tmp_path / "d", "image_encoder", {"pixel_values": PIXELS}, outputs))
    comparison = compare(replay(model, dump), dump)
    assert first_difference(comparison, 1e-4) == 2
    lines = list(comparison_lines(comparison, 1e-4))
    assert "DIFFERS, FIRST, other order: they agree as [bfcp], and not as [bfpc]" in lines[2]
    assert lines[-1].startswith(f"first difference: {LAYERS[2]}, relative error ")
    assert lines[-1].endswith("; 1 differ in all, 1 of them in the order of axes only")


def test_outputs_of_another_size_are_not_compared_and_the_verdict_says_so(
    model, clip_outputs, tmp_path
):
    from o3d_jax.weights.pytorch.compare import compare, comparison_lines
    from o3d_jax.weights.pytorch.dump import Dump
    from o3d_jax.weights.pytorch.replay import replay

    outputs = [(name, array[:1] if name == LAYERS[0] else array) for name, array in clip_outputs]
    dump = Dump(write_dump(tmp_path / "d", "image_encoder", {"pixel_values": PIXELS}, outputs))
    lines = list(comparison_lines(compare(replay(model, dump), dump), 1e-4))
    assert lines[-1].startswith(f"all {len(LAYERS) - 1} modules agree, 1 not compared; largest")


def denoiser_inputs():
    rng = np.random.default_rng(4)
    sample = rng.standard_normal((B, V, 8, 8, 16), np.float32)
    sample[:, 1:, 4:] = sample[:, :1, 4:]  # The condition's, the same in all frames.
    return {
        "sample": sample,
        "timestep": np.float32(0.3),
        "encoder_hidden_states": rng.standard_normal((B, 1, 12)),
        "added_time_ids": rng.standard_normal((B, 3)),
        "extrinsics": rng.standard_normal((B, V, 4, 4)),
        "intrinsics": rng.standard_normal((B, V, 3, 3)),
        "cond_rgb": rng.random((B, V, 3, 16, 32)),
        "cond_ccm": rng.random((B, V, 3, 16, 32)),
    }


def replayed(model, folder: Path, network: str, inputs):
    from o3d_jax.weights.pytorch.dump import Dump
    from o3d_jax.weights.pytorch.replay import replay

    return replay(model, Dump(write_dump(folder, network, inputs)))


def test_denoiser_is_given_what_the_release_was(model, tmp_path):
    given = denoiser_inputs()
    found = replayed(model, tmp_path / "dump", "unet", given)
    x, c_noise, condition, cameras, maps = jax.tree.map(np.asarray, found.inputs)
    for b, v, c, i, j in np.ndindex(B, V, 4, 8, 16):
        assert x[b, v, i, j, c] == given["sample"][b, v, c, i, j]
        assert condition.latents[b, i, j, c] == given["sample"][b, v, 4 + c, i, j]
    np.testing.assert_array_equal(c_noise, np.full(B, 0.3, np.float32))
    np.testing.assert_array_equal(cameras.camera_to_world, given["extrinsics"].astype(np.float32))
    np.testing.assert_array_equal(cameras.intrinsics, given["intrinsics"].astype(np.float32))
    for ours, name in ((maps.rgb, "cond_rgb"), (maps.ccm, "cond_ccm")):
        np.testing.assert_array_equal(ours, given[name].transpose(0, 1, 3, 4, 2).astype(np.float32))
    del given["cond_rgb"], given["cond_ccm"]
    assert replayed(model, tmp_path / "none", "unet", given).inputs[-1] is None


def test_reconstruction_is_given_what_the_release_was(model, tmp_path):
    rng = np.random.default_rng(5)
    given = {
        "images": rng.uniform(-1, 1, (B, 4, 3, 5, 6)),
        "timestep": np.array([0.1, 0.2]),
        "c2w": rng.standard_normal((B, 4, 4, 4)),
        "intrinsics": rng.standard_normal((B, 4, 3, 3)),
    }
    params = dataclasses.replace(model.weights.params, lgm={"params": {}})
    weights = dataclasses.replace(model.weights, params=params)
    with_lgm = dataclasses.replace(model, weights=weights)
    images, cameras, c_noise = replayed(with_lgm, tmp_path / "dump", "recon_model", given).inputs
    expected = given["images"].transpose(0, 1, 3, 4, 2) / 2 + 0.5
    np.testing.assert_allclose(images, expected, rtol=0, atol=1e-6)  # float32 in [0, 1].
    np.testing.assert_array_equal(cameras.camera_to_world, given["c2w"].astype(np.float32))
    np.testing.assert_array_equal(c_noise, given["timestep"].astype(np.float32))


def change(name, value):
    return lambda inputs: inputs | {name: value}


@pytest.mark.parametrize(
    ("network", "spoil", "message"),
    [
        ("vae", dict, "none of .*vae_encoder"),
        ("recon_model", dict, "has no lgm"),
        ("unet", lambda i: {k: v for k, v in i.items() if k != "timestep"}, "no input 'timestep'"),
        ("unet", change("sample", np.zeros((B, V, 6, 8, 16))), r"\[b f 8 h w\]"),
        ("unet", change("sample", np.zeros((B, V, 8, 8, 12))), "multiples of 8"),
        ("unet", change("sample", denoiser_inputs()["sample"][:, :, ::-1]), "condition latents"),
        ("unet", change("timestep", np.zeros(B + 1)), "with .*b=2"),
        ("unet", change("intrinsics", np.zeros((B, V + 1, 3, 3))), "with .*f=3"),
        ("unet", change("cond_ccm", np.zeros((B, V, 3, 16, 16))), "with .*W=32"),
        ("unet", change("encoder_hidden_states", np.zeros((B, 1, 13))), r"\[b 1 12\]"),
    ],
)
def test_what_cannot_be_replayed_is_said_in_one_line(network, spoil, message, model, tmp_path):
    from o3d_jax.errors import InputError

    with pytest.raises(InputError, match=message):
        replayed(model, tmp_path / "dump", network, spoil(denoiser_inputs()))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda d: (d / "order.json").write_text("{"), "damaged"),
        (lambda d: (d / "order.json").write_text('{"network": "unet"}'), "damaged"),
        (lambda d: (d / "0.npy").write_bytes((d / "0.npy").read_bytes()[:-9]), "cannot be read"),
        (lambda d: (d / "0.npy").unlink(), "cannot be read"),
        (lambda d: np.save(d / "0.npy", np.zeros(3, np.float32)), "has shape"),
        (lambda d: np.save(d / "0.npy", np.zeros(3, object)), "cannot be read"),
        (lambda d: np.save(d / "0.npy", np.zeros(3, np.int32)), "no float32"),
        (
            lambda d: (d / "order.json").write_text(
                (d / "order.json").read_text().replace("vision_", "audio_").replace("visual", "a")
            ),
            "no module",
        ),
    ],
)
def test_damaged_dump_is_an_error(damage, message, model, clip_dump):
    from o3d_jax.errors import InputError
    from o3d_jax.weights.pytorch.compare import compare
    from o3d_jax.weights.pytorch.dump import Dump
    from o3d_jax.weights.pytorch.replay import replay

    damage(clip_dump)
    with pytest.raises(InputError, match=message):
        dump = Dump(clip_dump)
        compare(replay(model, dump), dump)


def test_dump_script_stands_alone():
    import o3d_jax.weights.pytorch

    path = Path(o3d_jax.weights.pytorch.__file__).with_name("dump_script.py")
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found = {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found = {(node.module or "").split(".")[0]}
        else:
            continue
        assert found <= {"torch", "numpy"} | sys.stdlib_module_names
