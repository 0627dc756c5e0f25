"""Weights that cannot be converted are refused in one line, and nothing is written."""

import dataclasses
import json
import math
import shutil
import weakref

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.__main__ import main as o3d
from o3d_jax.errors import InputError
from o3d_jax.types import Frozen, Params
from o3d_jax.weights import streaming
from o3d_jax.weights.checkpoint import Weights
from o3d_jax.weights.pytorch.convert import FromRelease, FromSvd, convert
from o3d_jax.weights.pytorch.export import Export, export
from o3d_jax.weights.pytorch.rules import read_file
from support import fake_weights as fake

PLUCKER = "mid_plucker.embed.0.weight"


def missing(folder, model):
    fake.change(folder, "mv_model_unet", lambda t: [t.pop("unet.conv_in.bias"), t.pop(PLUCKER)])


def extra(folder, model):
    fake.change(folder, "recon_model", lambda t: t.update({"lpips.lin0.weight": t["conv.bias"]}))


def transposed(folder, model):
    fake.change(folder, "mv_model_unet", lambda t: t.update({PLUCKER: t[PLUCKER].T}))


def not_finite(folder, model):
    def edit(tensors):
        tensors["conv.bias"][3] = np.nan
        tensors["unet.conv_in.weight"][0, 1, 2, 2] = -np.inf

    fake.change(folder, "recon_model", edit)


def cut_shard(folder, model):
    tensors = fake.load(folder, "mv_model_unet")
    (folder / "mv_model_unet.safetensors").unlink()
    fake.save_shards(folder, "mv_model_unet", tensors)
    path = folder / "mv_model_unet-00002-of-00003.safetensors"
    path.write_bytes(path.read_bytes()[:-1])


def wrong_index(folder, model):
    tensors = fake.load(folder, "mv_model_unet")
    (folder / "mv_model_unet.safetensors").unlink()
    fake.save_shards(folder, "mv_model_unet", tensors)
    path = folder / "mv_model_unet.safetensors.index.json"
    index = json.loads(path.read_text())
    where = index["weight_map"]
    moved = "unet.conv_in.bias"
    where[moved] = next(file for file in sorted(set(where.values())) if file != where[moved])
    where["ghost"] = "mv_model_unet-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))


def float8(folder, model):
    kind = jnp.float8_e4m3fn
    fake.change(
        folder, "recon_model", lambda t: t.update({"conv.weight": t["conv.weight"].astype(kind)})
    )


def other_unet(folder, model):
    unet = dataclasses.replace(model.unet, block_out_channels=(16, 16))
    shapes = fake.shapes(dataclasses.replace(model, unet=unet))
    fake.save(folder / "mv_model_unet.safetensors", fake.fake(shapes["unet"]))


def small_lgm(folder, model):
    lgm = dataclasses.replace(model.lgm, up_channels=(16,), up_attention=(True,))
    shapes = fake.shapes(dataclasses.replace(model, lgm=lgm))
    fake.save(folder / "recon_model.safetensors", fake.fake(shapes["lgm"]))


def half_the_views(folder, model):
    """As `export` would write them for a model whose LGM reads one view rather than two."""
    notes = dataclasses.asdict(dataclasses.replace(model.lgm, num_views=1))
    tensors = fake.load(folder, "recon_model")
    fake.save(folder / "recon_model.safetensors", tensors, {"o3d_jax": json.dumps(notes)})


FAULTS = {
    missing: rf"mv_model_unet\.safetensors: 2 missing \({PLUCKER}, unet\.conv_in\.bias\)",
    extra: r"recon_model\.safetensors: 1 superfluous \(lpips\.lin0\.weight\)",
    transposed: rf"1 misshapen \({PLUCKER} \(\d+, \d+\), not \(\d+, \d+\)\)",
    not_finite: r"2 tensors hold infinities or NaN; .*: lgm conv\.bias, lgm unet\.conv_in\.weight$",
    cut_shard: r"mv_model_unet-00002-of-00003\.safetensors is cut off or damaged: .*fully covered",
    wrong_index: r"index\.json and its shards disagree on ghost, unet\.conv_in\.bias;",
    float8: r"1 of type F8_E4M3, not float32, float16, bfloat16 \(conv\.weight\)",
    other_unet: r"missing \(.*down_blocks\.1\.resnets\.0.*misshapen \(.*",
    small_lgm: r"missing \(unet\.up_blocks\.0\.upsample.*unet\.up_blocks\.1\..*misshapen",
    half_the_views: r"recon_model\.safetensors: num_views 1 there, 2 in the config$",
}


def test_all_faults_of_all_files_are_in_one_error(files, model, tmp_path, small):
    folder = shutil.copytree(files / "released", tmp_path / "released")
    missing(folder, model)
    extra(folder, model)
    svd = shutil.copytree(files / "svd", tmp_path / "svd")
    fake.change(svd / "vae", "diffusion_pytorch_model", lambda t: t.popitem())
    with pytest.raises(InputError, match=r"2 missing .*, and .*1 superfluous .*, and .*1 missing"):
        convert(FromRelease(folder, tmp_path / "out", svd=svd, config=small))


@pytest.mark.parametrize("plant", FAULTS, ids=lambda plant: plant.__name__)
def test_each_fault_is_named_and_nothing_is_written(files, model, tmp_path, plant, small):
    folder = shutil.copytree(files / "released", tmp_path / "released")
    plant(folder, model)
    with pytest.raises(InputError, match=FAULTS[plant]):
        convert(FromRelease(folder, tmp_path / "out", config=small))
    assert [path.name for path in tmp_path.iterdir()] == ["released"]


def test_a_folder_whose_config_has_other_heads_is_refused(files, tmp_path, small):
    """No tensor shows the number of heads."""
    svd = shutil.copytree(files / "svd", tmp_path / "svd")
    path = svd / "unet" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": [2, 2]}))
    with pytest.raises(InputError, match=r"num_attention_heads \(2, 2\) there, \(1, 2\) in the"):
        convert(FromSvd(svd, tmp_path / "out", config=small))


def header(text, length=None):
    return (len(text) if length is None else length).to_bytes(8, "little") + text


ROW = b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [%d, %d]}}'


def rows(**tensors):
    """A header by hand: name = (type, shape, first byte, last)."""
    table = {
        name: {"dtype": code, "shape": shape, "data_offsets": [first, last]}
        for name, (code, shape, first, last) in tensors.items()
    }
    return header(json.dumps(table).encode())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "run `git lfs pull`"),
        (b"", "cut off or damaged: .* header too small"),
        (header(b"{}", 3), "cut off or damaged: .* invalid header length"),
        (header(b"{nothing"), "damaged: .* invalid JSON in header"),
        (header(b"[1]"), "damaged: .* invalid type: sequence"),
        (header(b'{"a": {"dtype": "F32"}}'), "damaged: .* missing field `shape`"),
        (header(ROW % (0, 4)) + bytes(4), "damaged: .* invalid shape, data type, or offset"),
        (header(ROW % (-8, 0)) + bytes(8), "damaged: .* expected usize"),
        (header(ROW % (0, 8)) + bytes(7), "damaged: .* file not fully covered"),
        (header(ROW % (0, 8)) + bytes(9), "damaged: .* file not fully covered"),
        (header(ROW % (4, 12)) + bytes(12), "damaged: .* invalid offset for tensor `a`"),
        (rows(a=("F32", [2], 0, 8), b=("F32", [3], 4, 16)) + bytes(16), "offset for tensor `b`"),
        (rows(a=("F32", [2], 0, 8), b=("F32", [3], 9, 21)) + bytes(21), "offset for tensor `b`"),
        (rows(a=("F8_E4M3", [3, 5], 0, 16)) + bytes(16), "damaged: .* invalid shape, data type"),
        (rows(a=("F32", [-2, -1], 0, 8)) + bytes(8), "damaged: .* expected usize"),
        (rows(a=("F32", [2.0], 0, 8)) + bytes(8), "damaged: .* expected usize"),
        (rows(a=("F32", [math.inf], 0, 8)) + bytes(8), "damaged: .* expected value"),
        (rows(a=("F32", [2], 0, math.inf)) + bytes(8), "damaged: .* expected value"),
        (rows(a=("F32", [10**4000], 0, 8)) + bytes(8), "damaged: .* out of range"),
        (rows(a=("F32", [2**62, 4], 0, 0)), "damaged: .* overflow computing"),
        (rows(a=(["F32"], [2], 0, 8)) + bytes(8), "damaged: .* expected string"),
        (header(b'{"a": [1]}'), "damaged: .* invalid type: integer"),
        (header(b'{"__metadata__": [1]}'), "damaged: .* expected a map"),
        (header(b'{"__metadata__": {"o3d_jax": 3}}'), "damaged: .* expected a string"),
        (header(b'{"__metadata__": {"o3d_jax": "[3]"}}'), "no table of names"),
        (header(b'{"a": ' * 10**5), "damaged: .* recursion limit"),
        (header(b"{" + (ROW % (0, 8))[1:-1] + b", " + (ROW % (0, 8))[1:]) + bytes(8), "a is there"),
        (header(b"9" * 5000), "damaged: .* number out of range"),
    ],
)
def test_a_file_that_is_no_whole_safetensors_file_is_refused(tmp_path, content, said):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_file(path)


def test_a_header_longer_than_the_format_allows_is_not_even_read(tmp_path):
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:  # A hole in the file: it takes no space.
        file.write((10**8 + 1).to_bytes(8, "little"))
        file.truncate(10**9)
    with pytest.raises(InputError, match="cut off or damaged: .* header too large"):
        read_file(path)


@pytest.mark.parametrize("where", ["[]", '{"a": ["b"]}', '{"a": 3}', "{}"])
def test_an_index_without_files_is_refused(tmp_path, where):
    (tmp_path / "model.safetensors.index.json").write_text(f'{{"weight_map": {where}}}')
    with pytest.raises(InputError, match="is no index: it has no weight_map"):
        read_file(tmp_path / "model.safetensors.index.json")


def test_a_good_header_by_hand_is_read(tmp_path):
    path = tmp_path / "model.safetensors"
    text = rows(empty=("I64", [0, 3], 8, 8), a=("F32", [2], 0, 8))
    path.write_bytes(text + np.array([1.5, -2], "<f4").tobytes())
    tensor = next(t for t in read_file(path).tensors if t.spec.name == "a")
    assert tensor.spec.dtype == "float32"
    np.testing.assert_array_equal(tensor.read(), np.array([1.5, -2]))


def test_a_place_without_room_is_refused_before_anything_is_written(
    files, tmp_path, monkeypatch, small
):
    free = shutil._ntuple_diskusage(10**6, 10**6 - 10**5, 10**5)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match=r"0\.0 GB are free; choose a place"):
        convert(FromRelease(files / "released", tmp_path / "out", config=small))
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    convert(FromRelease(files / "released", tmp_path / "ours", config=small))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(InputError, match=r"0\.0 GB are free; choose a place"):
        export(Export(tmp_path / "ours", tmp_path / "out"))
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["svd", "nowhere", "out"], "nowhere/unet holds none of diffusion_pytorch_model.safe"),
        (["lgm", "nowhere.safetensors", "out"], "no file nowhere.safetensors"),
        (["lgm", "nowhere.pth", "out"], "no file nowhere.pth"),
        (
            ["released", "nowhere", "out"],
            "nowhere holds none of mv_model_unet.pth, mv_model_unet.safetensors",
        ),
        (["svd"], "Missing from o3d weights convert svd: PATH SVD as diffusers lays it out"),
        (["svd", "a", "b", "--variant", "fp8"], "fp8"),
        (
            ["sdv", "a", "b"],
            "cannot convert 'sdv'; give one of svd, lgm, released; the nearest is 'svd'",
        ),
        ([], "nothing to convert; give one of these first: svd, lgm, released"),
    ],
)
def test_what_the_user_got_wrong_is_one_line(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        o3d(["weights", "convert", *arguments])
    assert exit.value.code == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert said in line
    assert not (tmp_path / "out").exists()


def test_only_a_group_of_arrays_is_in_memory_while_a_model_is_written(
    config, tmp_path, monkeypatch
):
    monkeypatch.setattr(streaming, "GROUP_BYTES", 10_000)
    alive, peak = set(), []

    def read():
        array = np.ones((11, 91), np.float32)  # 4,004 bytes: two to a group.
        alive.add(id(array))
        weakref.finalize(array, alive.discard, id(array))
        peak.append(len(alive))
        return array

    leaf = streaming.Leaf((11, 91), np.dtype(np.float32), read)
    params = Params(unet={"params": {f"a_{i}": leaf for i in range(9)}}, lgm=None)
    weights = Weights(params=params, frozen=Frozen(vae=None))
    streaming.save_streamed(tmp_path / "model", config, weights, finish=lambda: "")
    assert len(peak) == 9
    assert max(peak) <= 4  # A group, and the one before, which orbax may still hold.
    stored = streaming.open_model(tmp_path / "model")
    assert len(list(stored.arrays(list(stored.leaves)))) == 9
