"""Files that torch saved: their tensors to the bit, and nothing else of them."""

import dataclasses
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.weights.pytorch import safetensors
from o3d_jax.weights.pytorch.convert import FromRelease, convert
from o3d_jax.weights.pytorch.export import Export, export
from o3d_jax.weights.pytorch.rules import read_torch
from support import fake_weights as fake


def test_without_torch_a_pth_file_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "model.pth").write_bytes(b"PK")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'o3d-jax\[convert\]'"):
        read_torch(tmp_path / "model.pth")


class Bomb:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path, trace = tmp_path / "model.pth", tmp_path / "executed"
    rows = {"a": torch.ones(3), "b": Bomb(trace)}
    torch.save(rows, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(InputError, match="more than tensors, or damaged; nothing of it was run"):
        read_torch(path)
    assert not trace.exists()
    torch.load(path, weights_only=False)  # The bomb was real.
    assert trace.exists()


@pytest.mark.parity
@pytest.mark.parametrize("dtype", fake.DTYPES)
@pytest.mark.parametrize("zipped", [True, False])
def test_what_torch_saved_is_read_to_the_bit(tmp_path, dtype, zipped):
    torch = pytest.importorskip("torch")
    made = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    whole = made.to(getattr(torch, dtype))
    rows = {"whole": whole, "part": whole[1:4].T, "parameter": torch.nn.Parameter(whole[0])}
    path = tmp_path / "model.pth"
    torch.save(rows, path, _use_new_zipfile_serialization=zipped)
    found = {t.spec.name: t for t in read_torch(path).tensors}
    assert found.keys() == rows.keys()
    for name, tensor in rows.items():
        assert found[name].spec.dtype == dtype
        assert found[name].read().dtype == fake.DTYPES[dtype]
        np.testing.assert_array_equal(
            found[name].read().astype(np.float32), tensor.detach().float().numpy()
        )


@pytest.mark.parity
@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (lambda torch: {"state_dict": {"a": torch.ones(2)}}, "state_dict is no tensor"),
        (lambda torch: [torch.ones(2)], "is a list; save"),
        (lambda torch: {3: torch.ones(2)}, "3 is no tensor"),
    ],
)
def test_a_torch_file_that_is_no_table_of_tensors_is_refused(tmp_path, rows, said):
    torch = pytest.importorskip("torch")
    torch.save(rows(torch), tmp_path / "model.pth")
    with pytest.raises(InputError, match=said):
        read_torch(tmp_path / "model.pth")


@pytest.mark.parity
def test_a_torch_file_that_was_cut_off_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save({"a": torch.ones(1000)}, path)
    path.write_bytes(path.read_bytes()[:-700])
    with pytest.raises(InputError, match="cut off or damaged"):
        read_torch(path)


@pytest.mark.parity
@pytest.mark.parametrize("zipped", [True, False])
def test_a_torch_file_with_any_byte_changed_is_read_or_refused_in_one_line(tmp_path, zipped):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    rows = {"a": torch.ones(3, 5), "b": torch.ones(7, dtype=torch.float16)}
    torch.save(rows, path, _use_new_zipfile_serialization=zipped)
    whole = path.read_bytes()
    refused = 0
    for at in range(0, len(whole), 3):
        for value in (0, 0x28, 0xFF):
            path.write_bytes(whole[:at] + bytes([value]) + whole[at + 1 :])
            try:
                for tensor in read_torch(path).tensors:
                    tensor.read()
            except InputError as error:
                refused += "\n" not in str(error)
    assert refused > 50  # Most bytes are padding or values, which are anyone's.


@pytest.mark.parity
def test_a_tensor_without_values_is_refused(tmp_path):
    torch = pytest.importorskip("torch")
    torch.save({"a": torch.ones(2), "b": torch.ones(3, device="meta")}, tmp_path / "model.pth")
    with pytest.raises(InputError, match="b has no values, it is meta; save it from a CPU"):
        read_torch(tmp_path / "model.pth")


@pytest.mark.parity
@pytest.mark.parametrize("dtype", fake.DTYPES)
def test_the_release_as_pth_goes_through_ours_and_loads_strictly_again(
    model, tmp_path, dtype, small
):
    torch = pytest.importorskip("torch")
    from safetensors.torch import load_file

    (tmp_path / "released").mkdir()
    for network, stem in (("unet", "mv_model_unet"), ("lgm", "recon_model")):
        made = fake.fake(fake.shapes(model)[network])
        rows = {k: torch.from_numpy(v).to(getattr(torch, dtype)) for k, v in made.items()}
        torch.save(rows, tmp_path / "released" / f"{stem}.pth")
    convert(FromRelease(tmp_path / "released", tmp_path / "ours", config=small))
    export(Export(tmp_path / "ours", tmp_path / "back"))
    for stem in ("mv_model_unet", "recon_model"):
        made = torch.load(tmp_path / "released" / f"{stem}.pth", weights_only=True)
        found = load_file(tmp_path / "back" / f"{stem}.safetensors")
        assert made.keys() == found.keys()
        bits = torch.int32 if dtype == "float32" else torch.int16
        assert all(torch.equal(made[k].view(bits), found[k].view(bits)) for k in made)


@pytest.mark.parity
def test_transformers_loads_our_shards_by_its_own_index(files, model, tmp_path, monkeypatch, small):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    convert(FromRelease(files / "released", tmp_path / "ours", svd=files / "svd", config=small))
    monkeypatch.setattr(safetensors, "SHARD_BYTES", 5_000)  # The tower has 10.8 kB.
    export(Export(tmp_path / "ours", tmp_path / "back"))
    folder = tmp_path / "back" / "image_encoder"
    assert len(list(folder.glob("model-*-of-00003.safetensors"))) == 3
    config = transformers.CLIPVisionConfig(**dataclasses.asdict(model.clip))
    config.save_pretrained(folder)
    loaded, info = transformers.CLIPVisionModelWithProjection.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float16
    )
    assert not any(info.values())  # Nothing is missing, unexpected or misshapen.
    made = fake.fake(fake.shapes(model)["clip"], "float16")
    found = {k: v.numpy() for k, v in loaded.state_dict().items() if "position_ids" not in k}
    assert found.keys() == made.keys()
    assert all(found[name].tobytes() == made[name].tobytes() for name in made)
