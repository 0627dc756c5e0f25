"""What files say of themselves, and what else is in them: fields, rotations, losses, LPIPS."""

import dataclasses
import json
import re
import shutil

import chex
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.weights.checkpoint import load_model
from o3d_jax.weights.pytorch import convert as tool
from o3d_jax.weights.pytorch.convert import FromLgm, FromRelease, FromSvd, NetworkFile, convert
from o3d_jax.weights.pytorch.export import Export, export
from o3d_jax.weights.pytorch.lpips import lins_rule, lpips_shapes, trunk_rule
from o3d_jax.weights.pytorch.names import manifest
from o3d_jax.weights.pytorch.rules import Tally, plan_network
from support import fake_weights as fake

pytestmark = pytest.mark.usefixtures("quick_compilation")


def describe(folder, network, **fields):
    """Changes what a config.json says."""
    path = folder / network / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


# Fields that no tensor shows

VARIED = {  # As in SVD's own configs, but for the sizes of the small model.
    "unet": {
        "in_channels": 8,
        "out_channels": 4,
        "cross_attention_dim": 12,
        "projection_class_embeddings_input_dim": 24,
        "transformer_layers_per_block": 1,
        "num_frames": 25,
    },
    "vae": {"in_channels": 3, "out_channels": 3, "force_upcast": True},
    "image_encoder": {"hidden_act": "gelu", "layer_norm_eps": 1e-05, "num_channels": 3},
}


def test_constants_of_the_originals_pass_also_as_a_number_for_each_scale(
    files, model, tmp_path, small
):
    assert (model.clip.projection_dim, model.unet.addition_time_embed_dim) == (12, 8)
    svd = shutil.copytree(files / "svd", tmp_path / "svd")
    for network, fields in VARIED.items():
        describe(svd, network, **fields)
    tool.check(tool.read_order(FromSvd(svd, tmp_path / "out", config=small)))
    lists = {"layers_per_block": [1, 1], "transformer_layers_per_block": [1, 1]}
    describe(svd, "unet", **lists, cross_attention_dim=[12, 12])
    tool.check(tool.read_order(FromSvd(svd, tmp_path / "out", config=small)))
    describe(svd, "unet", layers_per_block=[1, 2], num_attention_heads=1)
    with pytest.raises(InputError, match=r"layers_per_block \(1, 2\) there, 1 in the config"):
        tool.check(tool.read_order(FromSvd(svd, tmp_path / "out", config=small)))
    describe(svd, "unet", layers_per_block=1)
    with pytest.raises(InputError, match=r"num_attention_heads 1 there, \(1, 2\) in the config"):
        tool.check(tool.read_order(FromSvd(svd, tmp_path / "out", config=small)))


def test_all_fields_that_no_tensor_shows_are_in_one_error(files, tmp_path, small):
    svd = shutil.copytree(files / "svd", tmp_path / "svd")
    wrong = {
        "unet": {
            "in_channels": 9,
            "out_channels": 5,
            "cross_attention_dim": 768,
            "transformer_layers_per_block": [1, 2],
            "projection_class_embeddings_input_dim": 25,
        },
        "vae": {"in_channels": 4, "norm_num_groups": 3, "scaling_factor": 0.13025},
        "image_encoder": {"hidden_act": "quick_gelu", "layer_norm_eps": 1e-6},
    }
    for network, fields in wrong.items():
        describe(svd, network, **fields)
    with pytest.raises(InputError) as error:
        convert(FromSvd(svd, tmp_path / "out", config=small))
    for network, fields in wrong.items():
        assert str(svd / network / "config.json") in str(error.value)
        for name, value in fields.items():
            plain = tuple(value) if isinstance(value, list) else value
            assert f"{name} {plain!r} there" in str(error.value)
    assert "hidden_act 'quick_gelu' there, 'gelu' in our network" in str(error.value)
    assert "cross_attention_dim 768 there, 12 in our network" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_folder_without_config_is_named_as_not_verified(files, tmp_path, small):
    svd = shutil.copytree(files / "svd", tmp_path / "svd")
    for network in ("vae", "image_encoder"):
        (svd / network / "config.json").unlink()
    said = convert(FromRelease(files / "released", tmp_path / "out", svd=svd, config=small))
    rows = [line.split()[2] for line in said.split("\n") if line.startswith("not verified:")]
    assert rows == [str(svd / "vae"), str(svd / "image_encoder")]
    assert (tmp_path / "out" / "report.txt").read_text().count("not verified") == 2
    said = convert(
        FromRelease(files / "released", tmp_path / "out", svd=files / "svd", config=small)
    )
    assert "not verified" not in said


# LGM


def test_the_loss_of_lgms_training_is_dropped_by_name(model, tmp_path, small):
    loss = {f"lpips_loss.lin{i}.model.1.weight": np.ones((1, 3), np.float32) for i in range(2)}
    fake.save(tmp_path / "lgm_fixrot.safetensors", fake.lgm(model) | loss)
    said = convert(FromLgm(tmp_path / "lgm_fixrot.safetensors", tmp_path / "out", config=small))
    assert f"dropped {', '.join(sorted(loss))} from" in said
    assert f"lgm: {len(fake.lgm(model)) + 2} tensors read, {len(fake.lgm(model))} filled" in said


def test_a_bare_unet_is_called_so_and_only_what_it_lacks_is_named(model, tmp_path, small):
    bare = {k.removeprefix("unet."): v for k, v in fake.lgm(model).items() if k[:5] == "unet."}
    path = tmp_path / "lgm_fixrot.safetensors"
    fake.save(path, bare)
    wanted = rf"{path}: names without \"unet.\": a U-Net alone; give the file of the whole network"
    with pytest.raises(InputError, match=rf"{wanted}; 2 missing \(conv.bias, conv.weight\)$"):
        convert(FromLgm(path, tmp_path / "out", config=small))


@pytest.mark.parametrize("prefix", ["module.", "model.", "ema.", "_orig_mod.", "_orig_mod.module."])
def test_a_prefix_of_all_names_is_said_and_stripped_on_request(model, tmp_path, small, prefix):
    plain = fake.lgm(model) | {"lpips_loss.lin0.model.1.weight": np.ones((1, 3), np.float32)}
    path = tmp_path / "lgm_fixrot.safetensors"
    fake.save(path, {prefix + name: array for name, array in plain.items()})
    order = FromLgm(path, tmp_path / "out", config=small)
    with pytest.raises(InputError) as refusal:
        convert(order)
    assert str(refusal.value) == (
        f'{path}: all {len(plain)} names begin with "{prefix}", as wrappers of torch have it; '
        f"give --strip-prefix {prefix}"
    )
    for asked in (prefix, prefix.rstrip(".")):
        tool.check(tool.read_order(dataclasses.replace(order, strip_prefix=(asked,))))
    fake.save(path, plain)
    with pytest.raises(InputError, match=f"--strip-prefix {prefix}: in none of the files do all"):
        convert(dataclasses.replace(order, strip_prefix=(prefix,)))


def test_files_with_a_prefix_give_what_those_without_give(files, model, tmp_path, small):
    folder = shutil.copytree(files / "released", tmp_path / "released")
    tensors = fake.load(folder, "recon_model")
    convert(FromRelease(folder, tmp_path / "plain", config=small))
    fake.save(folder / "recon_model.safetensors", {f"module.{k}": v for k, v in tensors.items()})
    order = FromRelease(folder, tmp_path / "out", config=small, strip_prefix=("module.",))
    assert f"lgm: {len(tensors)} tensors read, {len(tensors)} filled" in convert(order)
    both = [load_model(tmp_path / name).weights for name in ("out", "plain")]
    chex.assert_trees_all_equal(*both)
    # Files of one order may be of two wrappers.
    both = fake.load(folder, "mv_model_unet")
    name = folder / "mv_model_unet.safetensors"
    fake.save(name, {f"_orig_mod.{k}": v for k, v in both.items()})
    wanted = r"give --strip-prefix _orig_mod\., and .*give --strip-prefix module\."
    with pytest.raises(InputError, match=wanted):
        convert(dataclasses.replace(order, strip_prefix=()))
    tool.check(tool.read_order(dataclasses.replace(order, strip_prefix=("module.", "_orig_mod."))))
    # A file that has it before some of its names is of another kind.
    fake.change(folder, "recon_model", lambda t: t.update(extra=t["module.conv.bias"]))
    with pytest.raises(InputError, match="in none of the files"):
        convert(order)


@pytest.mark.parametrize(
    ("name", "asked", "recorded"),
    [
        ("model_fp16_fixrot.safetensors", None, "per_gaussian"),
        ("model_fp16_fixrot.safetensors", "per_gaussian", "per_gaussian"),
        ("model_fp16.safetensors", "over_gaussians", "over_gaussians"),
        ("model_fp16.safetensors", "per_gaussian", "per_gaussian"),
    ],
)
def test_the_rotation_variant_of_lgm_is_recorded(model, tmp_path, name, asked, recorded, small):
    fake.save(tmp_path / name, fake.lgm(model))
    order = FromLgm(tmp_path / name, tmp_path / "out", rotation=asked, config=small)
    assert tool.read_order(order).config.model.lgm.rotation_norm == recorded


def test_a_rotation_variant_that_is_unknown_or_wrong_is_refused(model, tmp_path, small):
    for name, asked, said in [
        ("model_fp16.safetensors", None, "give --rotation over_gaussians"),
        ("model_fixrot.safetensors", "over_gaussians", "model_fixrot.safetensors is per_gaussian"),
    ]:
        fake.save(tmp_path / name, fake.lgm(model))
        with pytest.raises(InputError, match=said):
            tool.read_order(
                FromLgm(tmp_path / name, tmp_path / "out", rotation=asked, config=small)
            )


def test_a_rotation_without_lgm_is_refused_rather_than_ignored(files, tmp_path, small):
    order = FromSvd(files / "svd", tmp_path / "out", rotation="per_gaussian", config=small)
    with pytest.raises(InputError, match="per_gaussian is about LGM's file; give .*--lgm"):
        tool.read_order(order)


@pytest.mark.parametrize(
    ("ours", "name", "notes", "known"),
    [
        ("over_gaussians", "model_fixrot", {}, "per_gaussian"),
        ("per_gaussian", "model", {"rotation_norm": "over_gaussians"}, "over_gaussians"),
    ],
)
def test_a_rotation_that_file_and_config_disagree_on_is_the_files_if_asked_for(
    model, tmp_path, small, ours, name, notes, known
):
    text = f'lgm = dataclasses.replace(config.model.lgm, rotation_norm="{ours}")\n'
    text += "model = dataclasses.replace(config.model, lgm=lgm)\n"
    text += "config = dataclasses.replace(config, model=model)\n"
    (tmp_path / "config.py").write_text(small.read_text() + text)
    path = tmp_path / f"{name}.safetensors"
    fake.save(path, fake.lgm(model), {"o3d_jax": json.dumps(notes)})
    order = {"file": path, "out": tmp_path / "out", "config": tmp_path / "config.py"}
    said = rf"{path} is {known}, and rotation_norm is {ours} in the config; give --rotation {known}"
    with pytest.raises(InputError, match=said):
        tool.read_order(FromLgm(**order))
    conversion = tool.read_order(FromLgm(**order, rotation=known))
    assert conversion.config.model.lgm.rotation_norm == known
    assert f"rotation_norm {known}\n" in tool.conversion_report(conversion, [])


# LPIPS


LAYOUT = {"vgg": "CRCRP" * 2 + "CRCRCRP" * 3, "alex": "CRPCRPCRCRCRP"}
"""Torchvision's layers by letter: convolution, ReLU, pooling."""


def lpips_files(network):
    """Both files as they are published, each tensor filled with its layer's number."""
    positions = [i for i, letter in enumerate(LAYOUT[network]) if letter == "C"]
    shapes = manifest(lpips_shapes(network))
    order = sorted(n.removesuffix(".weight") for n in shapes if re.fullmatch(r"conv.+weight", n))
    trunk = {
        f"features.{at}.{leaf}": np.full(shapes[f"{name}.{leaf}"], at, np.float32)
        for at, name in zip(positions, order, strict=True)
        for leaf in ("weight", "bias")
    }
    lins = {
        f"lin{i}.model.1.weight": np.full(shapes[f"lin{i}.weight"], i, np.float32) for i in range(5)
    }
    return trunk | {"classifier.6.weight": np.ones((2, 3), np.float32)}, lins


def save_lpips(folder, network):
    trunk, lins = lpips_files(network)
    fake.save(folder / "trunk.safetensors", trunk)
    fake.save(folder / "lins.safetensors", lins)
    return folder / "trunk.safetensors", folder / "lins.safetensors"


@pytest.mark.parametrize(("network", "number"), [("vgg", 13), ("alex", 5)])
def test_lpips_is_put_together_from_its_two_files(tmp_path, network, number):
    trunk, lins = save_lpips(tmp_path, network)
    shapes = lpips_shapes(network)
    leaves, tallies = {}, []
    for rule, path in ((trunk_rule(network), trunk), (lins_rule(network), lins)):
        tally = Tally("lpips", path)
        leaves |= plan_network(tally, rule, tool.read_file(path), shapes, lambda _: None)
        tallies.append(tally)
    assert leaves.keys() == manifest(shapes).keys()
    convolutions = sorted(n for n in leaves if n.startswith("conv") and n.endswith("weight"))
    positions = [i for i, letter in enumerate(LAYOUT[network]) if letter == "C"]
    assert len(convolutions) == number
    for layer, name in zip(positions, convolutions, strict=True):
        assert np.all(leaves[name].read() == layer)
        assert np.all(leaves[name.replace("weight", "bias")].read() == layer)
    assert all(np.all(leaves[f"lin{i}.weight"].read() == i) for i in range(5))
    assert [tally.dropped for tally in tallies] == [("classifier.6.weight",), ()]
    assert "features.0.weight" in tallies[0].done


def lpips_error(config, trunk, lins):
    """What is wrong with the files, as `convert --lpips` says it."""
    network = config.optim.lpips_network
    jobs = [
        NetworkFile("lpips", trunk_rule(network), tool.read_file(trunk)),
        NetworkFile("lpips", lins_rule(network), tool.read_file(lins)),
    ]
    with pytest.raises(InputError) as error:
        tool.check(tool.Conversion(config, jobs))
    return str(error.value)


def test_what_is_wrong_with_lpips_is_said_of_the_file_and_in_its_names(config, tmp_path):
    trunk, lins = save_lpips(tmp_path, config.optim.lpips_network)
    fake.change(tmp_path, "trunk", lambda t: [t.pop("features.0.bias"), t.update(extra=t[LAST])])
    said = lpips_error(config, trunk, lins)
    assert said.endswith(f"{trunk}: 1 missing (features.0.bias); 1 superfluous (extra)")
    save_lpips(tmp_path, config.optim.lpips_network)
    fake.change(tmp_path, "lins", lambda t: t.update({LIN: t[LIN][:, 1:]}))
    size = fake.load(tmp_path, "trunk")["features.2.weight"].shape[0]
    said = lpips_error(config, trunk, lins)
    assert said.endswith(
        f"{lins}: 1 misshapen ({LIN} (1, {size - 1}, 1, 1), not (1, {size}, 1, 1))"
    )


LAST = "classifier.6.weight"
LIN = "lin0.model.1.weight"


def test_an_export_as_trunk_and_files_in_the_wrong_order_are_refused(
    files, config, tmp_path, small
):
    trunk, lins = save_lpips(tmp_path, config.optim.lpips_network)
    said = lpips_error(config, lins, trunk)
    assert re.search(rf"{lins}: \d+ missing \(features\..* 5 superfluous \(lin0\.model", said)
    assert re.search(rf"{trunk}: 5 missing \(lin0\.model\..* superfluous \(classifier\.6", said)
    convert(FromRelease(files / "released", tmp_path / "ours", config=small))
    export(Export(tmp_path / "ours", tmp_path / "out"))
    ours = tmp_path / "out" / "recon_model.safetensors"
    said = lpips_error(config, ours, lins)
    assert re.search(rf"{ours}: \d+ missing \(features\..* superfluous \(conv\.bias", said)


def test_lpips_goes_into_the_checkpoint_and_both_files_are_reported(files, config, tmp_path, small):
    pair = save_lpips(tmp_path, config.optim.lpips_network)
    said = convert(FromRelease(files / "released", tmp_path / "out", lpips=pair, config=small))
    rows = [line for line in said.split("\n") if line.startswith("lpips:")]
    assert [row.rpartition(" from ")[2] for row in rows] == [str(path) for path in pair]
    lpips = load_model(tmp_path / "out").weights.frozen.lpips["params"]
    shapes = lpips_shapes(config.optim.lpips_network)
    assert manifest(lpips) == manifest(shapes)
    assert np.all(lpips["lin3"]["kernel"] == 3)
