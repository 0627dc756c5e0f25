"""LPIPS's weights from files as they are published, of random numbers: lpips-j judges."""

import chex
import h5py
import jax
import jax.numpy as jnp
import lpips_j.lpips
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.metrics import lpips
from o3d_jax.nn.lpips import TRUNKS, Lpips
from o3d_jax.weights.pytorch.lpips import LAYERS, read_lpips
from support.fake_weights import save
from support.quick import jit
from support.synthetic import synthetic_variables


@pytest.fixture(scope="module")
def params():
    image = jnp.zeros((1, 32, 32, 3))
    drawn = synthetic_variables(Lpips(), image, image)["params"]
    # The published channel weights are not negative.
    return {n: jax.tree.map(np.abs, p) if n[:3] == "lin" else p for n, p in drawn.items()}


def write_hdf5(folder, params):
    """The two files of lpips-j."""
    trunk, lins = folder / "vgg16_weights.h5", folder / "lpips_lin.h5"
    with h5py.File(trunk, "w") as file:
        for name, layer in params.items():
            if name[:4] == "conv":
                file[f"{name}/weight"], file[f"{name}/bias"] = layer["kernel"], layer["bias"]
        for i in (6, 7, 8):  # For the classes of ImageNet; much larger in truth.
            file[f"fc{i}/weight"] = np.zeros((3, 2), np.float32)
            file[f"fc{i}/bias"] = np.zeros(2, np.float32)
    with h5py.File(lins, "w") as file:
        for name, layer in params.items():
            if name[:3] == "lin":
                file[name] = layer["kernel"]
    return trunk, lins


@pytest.fixture(scope="module")
def files(params, tmp_path_factory):
    return write_hdf5(tmp_path_factory.mktemp("lpips-j"), params)


def test_hdf5_files_are_read_bit_for_bit(params, files):
    chex.assert_trees_all_equal(read_lpips(files, "vgg"), params)


def test_the_distance_is_that_of_lpips_j(files, monkeypatch):
    """Its range is [-1, 1], and it finds both files in a cache of its own."""
    monkeypatch.setattr(
        lpips_j.lpips, "hf_hub_download", lambda repo_id, filename: files[0].with_name(filename)
    )
    a, b = jax.random.uniform(jax.random.key(0), (2, 3, 32, 48, 3))
    theirs = lpips_j.lpips.LPIPS()
    expected = jit(lambda x, y: theirs.init_with_output(jax.random.key(0), x, y)[0])(
        2 * a - 1, 2 * b - 1
    )
    found = jit(lpips)(read_lpips(files, "vgg"), a, b)
    assert found.min() > 0.1
    # float32 through thirteen layers.
    np.testing.assert_allclose(found, expected[:, 0, 0, 0], rtol=1e-5)


def test_torch_files_hold_the_same(params, files, tmp_path):
    """torchvision's names and layout, and those of the file of the channel weights."""
    names = [c.name for stage in TRUNKS["vgg"] for c in stage.convolutions]
    trunk = {}
    for name, layer in zip(names, LAYERS["vgg"], strict=True):
        trunk[f"features.{layer}.weight"] = np.transpose(params[name]["kernel"], (3, 2, 0, 1))
        trunk[f"features.{layer}.bias"] = np.asarray(params[name]["bias"])
    lins = {
        f"lin{i}.model.1.weight": np.transpose(params[f"lin{i}"]["kernel"], (3, 2, 0, 1))
        for i in range(5)
    }
    paths = (tmp_path / "vgg16.safetensors", tmp_path / "lin.safetensors")
    for path, tensors in zip(paths, (trunk, lins), strict=True):
        save(path, tensors)
    chex.assert_trees_all_equal(read_lpips(paths, "vgg"), params)
    mixed = read_lpips((files[0], paths[1]), "vgg")
    chex.assert_trees_all_equal(mixed, params)


def test_the_files_the_other_way_round_and_those_of_another_network_are_refused(files):
    with pytest.raises(InputError, match="the trunk's file first.*26 missing"):
        read_lpips((files[1], files[0]), "vgg")
    with pytest.raises(InputError, match="not LPIPS's weights for 'alex'"):
        read_lpips(files, "alex")


def small_files(folder, edit):
    """Files that are refused by their names and shapes: one number each."""
    trunk, lins = folder / "trunk.h5", folder / "lins.h5"
    with h5py.File(trunk, "w") as file:
        file["conv1_1/weight"] = np.zeros((3, 3, 3, 64), np.float32)
    with h5py.File(lins, "w") as file:
        for i, channels in enumerate((64, 128, 256, 512, 512)):
            file[f"lin{i}"] = np.zeros((1, 1, channels, 1), np.float32)
        edit(file)
    return trunk, lins


def rename(file):
    file["lin9"] = file.pop("lin4")


def reshape(file):
    del file["lin0"]
    file["lin0"] = np.zeros((1, 1, 65, 1), np.float32)


def retype(file):
    del file["lin0"]
    file["lin0"] = np.zeros((1, 1, 64, 1), np.float64)


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (rename, r"1 missing \(lin4.weight\); 1 superfluous \(lin9.weight\)"),
        (reshape, r"lin0.weight \(1, 65, 1, 1\), not \(1, 64, 1, 1\)"),
        (retype, "1 of type float64"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, edit, said):
    with pytest.raises(InputError, match=said):
        read_lpips(small_files(tmp_path, edit), "vgg")


def test_values_that_are_not_finite_are_named(params, tmp_path):
    kernel = np.array(params["lin2"]["kernel"])
    kernel[0, 0, 7, 0] = np.nan
    files = write_hdf5(tmp_path, params | {"lin2": {"kernel": kernel}})
    with pytest.raises(InputError, match="lpips_lin.h5: lin2.weight is not finite"):
        read_lpips(files, "vgg")


def test_a_damaged_file_and_a_missing_library_are_told(tmp_path, files, monkeypatch):
    short = tmp_path / "short.h5"
    short.write_bytes(files[1].read_bytes()[:500])
    with pytest.raises(InputError, match="short.h5 is cut off or no HDF5 file"):
        read_lpips((files[0], short), "vgg")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"install h5py: pip install 'o3d-jax\[lpips\]'"):
        read_lpips(files, "vgg")
