"""Weights from torch and back: the same bits, in every layout, and what is new starts fresh."""

import json
import re
import runpy
import shutil
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.weights.checkpoint import load_model, save_model
from o3d_jax.weights.pytorch import convert as tool
from o3d_jax.weights.pytorch import safetensors
from o3d_jax.weights.pytorch.convert import FromRelease, FromSvd, convert
from o3d_jax.weights.pytorch.export import Export, export
from o3d_jax.weights.pytorch.rules import LGM, SVD_UNET, fresh_parameters
from support import fake_weights as fake

ROOT = Path(__file__).parents[3]
NETWORKS = {
    "unet": ("", "mv_model_unet"),
    "lgm": ("", "recon_model"),
    "vae": ("vae", "diffusion_pytorch_model"),
    "clip": ("image_encoder", "model"),
}

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def start(files, small):
    """SVD and LGM, converted to train from: the checkpoint, and what was said."""
    out = files / "start"
    said = convert(
        FromSvd(files / "svd", out, lgm=files / "svd/lgm_fixrot.safetensors", config=small)
    )
    return load_model(out), said


def same_bits(one, other):
    assert one.keys() == other.keys()
    return [
        name
        for name in one
        if (one[name].dtype, one[name].shape) != (other[name].dtype, other[name].shape)
        or one[name].tobytes() != other[name].tobytes()
    ]


# There and back


@pytest.mark.parametrize("dtype", fake.DTYPES)
def test_torch_to_ours_to_torch_is_the_identity_to_the_bit(model, tmp_path, dtype, small):
    released = fake.save_released(tmp_path / "released", model, dtype)
    svd = fake.save_svd(tmp_path / "svd", model, dtype)
    said = convert(FromRelease(released, tmp_path / "model", svd=svd, config=small))
    back = export(Export(tmp_path / "model", tmp_path / "back"))
    for network, (folder, stem) in NETWORKS.items():
        made = fake.fake(fake.shapes(model)[network], dtype)
        found = fake.load(tmp_path / "back" / folder, stem)
        assert same_bits(found, made) == []
        assert f"{network}: {len(made)} tensors read, {len(made)} filled" in said
    hashes = [[line for line in text.split("\n") if "blake2b" in line] for text in (said, back)]
    assert sorted(hashes[0]) == sorted(hashes[1])
    assert len(set(hashes[0])) == len(NETWORKS)


def test_values_are_where_the_axes_of_flax_put_them(start, model):
    weights, torch = start[0].weights, fake.svd_unet(model, "float16")
    unet = weights.params.unet["params"]["unet"]
    np.testing.assert_array_equal(
        unet["conv_in"]["kernel"], np.einsum("oihw->hwio", torch["conv_in.weight"])
    )
    np.testing.assert_array_equal(
        unet["time_embedding"]["linear_2"]["kernel"], torch["time_embedding.linear_2.weight"].T
    )
    np.testing.assert_array_equal(unet["conv_in"]["bias"], torch["conv_in.bias"])


def test_a_model_we_trained_is_exported_and_comes_back(start, model, tmp_path, monkeypatch, small):
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 150_000)  # The U-Net is 0.39 MB.
    save_model(tmp_path / "ours", start[0].config, start[0].weights)
    export(Export(tmp_path / "ours", tmp_path / "torch"))
    shards = sorted(p.name for p in (tmp_path / "torch").glob("mv_model_unet*"))
    assert shards == [
        *(f"mv_model_unet-{i:05d}-of-00003.safetensors" for i in (1, 2, 3)),
        "mv_model_unet.safetensors.index.json",
    ]
    index = json.loads((tmp_path / "torch" / shards[-1]).read_text())
    assert index["weight_map"].keys() == fake.shapes(model)["unet"].keys()
    assert index["metadata"]["total_size"] == sum(
        array.nbytes for array in fake.load(tmp_path / "torch", "mv_model_unet").values()
    )
    (tmp_path / "svd").mkdir()
    for part in ("vae", "image_encoder"):
        (tmp_path / "torch" / part).rename(tmp_path / "svd" / part)
    order = FromRelease(tmp_path / "torch", tmp_path / "again", svd=tmp_path / "svd", config=small)
    convert(order)
    again = load_model(tmp_path / "again")
    chex.assert_trees_all_equal(again.weights, start[0].weights)


def test_an_export_in_another_type_is_the_cast_and_refuses_what_overflows(start, tmp_path):
    said = export(Export(files_of(start, tmp_path), tmp_path / "half", dtype="bfloat16"))
    found = fake.load(tmp_path / "half", "recon_model")
    lgm = start[0].weights.params.lgm["params"]["conv"]["bias"]
    assert found["conv.bias"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["conv.bias"], lgm.astype(jnp.bfloat16))
    count = len(fake.shapes(start[0].config.model)["lgm"])
    assert f"lgm: {count} tensors read, {count} filled" in said
    assert f", {count} cast" in said
    big = jax.tree.map(lambda a: a * np.float32(1e6), start[0].weights)
    save_model(tmp_path / "big", start[0].config, big)
    with pytest.raises(InputError, match=r"infinities or NaN; .*: unet .*, lgm conv\.weight, .*"):
        export(Export(tmp_path / "big", tmp_path / "broken", dtype="float16"))
    assert not (tmp_path / "broken").exists()


def test_an_export_replaces_an_earlier_one_and_nothing_else(start, tmp_path, monkeypatch):
    ours, out = files_of(start, tmp_path), tmp_path / "out"
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 150_000)
    export(Export(ours, out))
    export(Export(ours, out, dtype="bfloat16"))  # Fewer shards.
    assert len(list(out.glob("mv_model_unet-*-of-00002.safetensors"))) == 2
    assert not list(out.glob("*-of-00003*"))
    for theirs in ("vae/config.json", "vae/thesis.txt", "image_encoder/model.bin", "unet/x.txt"):
        (out / theirs).parent.mkdir(exist_ok=True)
        (out / theirs).write_text("keep me")
        with pytest.raises(InputError, match=f"holds {theirs}; choose another place"):
            export(Export(ours, out))
        assert (out / theirs).read_text() == "keep me"
        (out / theirs).unlink()


def files_of(start, tmp_path):
    save_model(tmp_path / "start", start[0].config, start[0].weights)
    return tmp_path / "start"


def names_of(network):
    return json.loads((ROOT / "tests" / "manifests" / f"{network}.json").read_text()).keys()


def test_what_lgm_and_svd_lack_is_a_list_by_name():
    time = {name for name in names_of("recon_model") if re.fullmatch(LGM.fresh, name)}
    assert len(time) == 62
    assert all("time_embed" in name or "emb_layers" in name for name in time)
    new = {name for name in names_of("mv_model_unet") if re.fullmatch(SVD_UNET.fresh, name)}
    assert names_of("mv_model_unet") - new == {f"unet.{name}" for name in names_of("svd_unet")}


def test_what_is_new_starts_as_its_modules_do_and_is_reported(start, model):
    checkpoint, said = start
    unet, lgm = (getattr(checkpoint.weights.params, n)["params"] for n in ("unet", "lgm"))
    first, second = unet["cond_encoder_0"], unet["cond_encoder_1"]
    block = first["body_0"]
    assert not np.any(block["block2"]["kernel"])  # Starts as the identity.
    assert np.any(first["conv_in"]["kernel"] != second["conv_in"]["kernel"])
    kernel = lgm["unet"]["time_embed_0"]["kernel"]  # 8 inputs, 32 outputs: variance 1 / 8.
    assert 0.8 < kernel.std() * np.sqrt(8) < 1.2  # Of 256 numbers: 4.4 % is one deviation.
    assert not np.any(lgm["unet"]["mid_block"]["nets_0"]["emb_layers_1"]["kernel"])
    made = {n: len(s) for n, s in fake.shapes(model).items()}
    kept = {"unet": len(fake.svd_unet(model)), "lgm": len(fake.lgm(model))}
    for name, count in kept.items():
        line = next(line for line in said.split("\n") if line.startswith(f"{name}:"))
        assert f"{count} filled" in line
        assert f"{made[name] - count} fresh" in line
    assert "drawn with seed 0" in said


def test_fresh_parameters_depend_on_the_seed_alone(start, model):
    name = "mid_plucker.embed.0.weight"
    stored = start[0].weights.params.unet["params"]["mid_plucker"]["embed_0"]["kernel"]
    one, other = (fresh_parameters(model, "unet", [name], seed)[name] for seed in (0, 4))
    np.testing.assert_array_equal(one, stored)
    assert np.abs(one - other).min() > 0


def lay_out(folder, model, layout):
    """SVD in one of the ways that it is found on disks."""
    if layout == "half, one file":
        return fake.save_svd(folder, model, "float16", ".fp16")
    if layout == "both":
        fake.save_svd(folder, model, "float16", ".fp16")
    fake.save_svd(folder, model)
    if "shards" in layout:
        half = "half" in layout
        (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
        fake.save_shards(
            folder / "unet",
            "diffusion_pytorch_model",
            fake.svd_unet(model, "float16" if half else "float32"),
            index="index.fp16.json" if half else "index.json",
        )
    return folder


LAYOUTS = ["one file", "half, one file", "both", "shards", "half, shards"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_of_svd_holds_the_same_tensors(model, tmp_path, layout, small):
    folder = lay_out(tmp_path / "svd", model, layout)
    conversion = tool.read_order(FromSvd(folder, tmp_path / "out", config=small))
    dtype = "float16" if "half" in layout else "float32"
    found = {t.spec.name: t.read() for t in conversion.jobs[0].source.tensors}
    assert same_bits(found, fake.svd_unet(model, dtype)) == []
    assert [job.network for job in conversion.jobs] == ["unet", "vae", "clip"]


def test_the_variant_asked_for_is_taken(model, tmp_path, small):
    folder = lay_out(tmp_path / "svd", model, "both")
    order = FromSvd(folder, tmp_path / "out", variant="fp16", config=small)
    for job in tool.read_order(order).jobs:
        assert {t.spec.dtype for t in job.source.tensors} == {"float16"}
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    with pytest.raises(InputError, match=r"vae holds none of diffusion_pytorch_model\.fp16\."):
        tool.read_order(order)


def test_positions_that_old_image_encoders_carry_along_are_dropped_by_name(
    files, model, tmp_path, small
):
    svd = shutil.copytree(files / "svd", tmp_path / "svd")
    clip = fake.fake(fake.shapes(model)["clip"])
    clip["vision_model.embeddings.position_ids"] = np.arange(5)[None]
    fake.save(svd / "image_encoder" / "model.safetensors", clip)
    said = convert(FromRelease(files / "released", tmp_path / "out", svd=svd, config=small))
    assert " cast" not in said  # Converting never changes a type.
    assert "dropped vision_model.embeddings.position_ids" in said
    assert f"clip: {len(clip)} tensors read, {len(clip) - 1} filled" in said


def test_a_release_without_svd_says_what_it_cannot_have(files, tmp_path, small):
    said = convert(FromRelease(files / "released", tmp_path / "out", config=small))
    assert "not in the checkpoint: vae, clip, lpips\n" in said
    assert (tmp_path / "out" / "report.txt").read_text() + f"wrote {tmp_path / 'out'}\n" == said
    weights = load_model(tmp_path / "out").weights
    assert weights.frozen.vae is None and weights.params.clip is None


def test_the_benchmark_finds_no_difference_at_toy_size_and_one_where_there_is_one(
    model, config, tmp_path, small
):
    benchmark = runpy.run_path(str(ROOT / "benchmarks" / "convert_full.py"))
    specs = benchmark["all_specs"](model, "bfloat16")
    benchmark["make"](tmp_path, specs)
    convert(FromRelease(tmp_path / "weights", tmp_path / "out", svd=tmp_path / "svd", config=small))
    export(Export(tmp_path / "out", tmp_path / "exported"))
    assert list(benchmark["different"](tmp_path / "exported", specs)) == []
    fake.change(
        tmp_path / "exported", "recon_model", lambda t: t["conv.bias"].view(np.uint16)[:1].fill(0)
    )
    assert list(benchmark["different"](tmp_path / "exported", specs)) == ["conv.bias"]
