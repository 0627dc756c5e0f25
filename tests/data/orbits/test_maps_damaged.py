import zipfile

import pytest

from o3d_jax.data.orbits.folder import read_maps
from o3d_jax.errors import InputError


@pytest.mark.parametrize("name", ["depth", "position"])
def test_a_map_that_is_no_array_is_damage(tmp_path, name):
    """Numpy returns the bytes of a member that does not begin as its arrays do."""
    with zipfile.ZipFile(tmp_path / "maps.npz", "w") as archive:
        archive.writestr(f"{name}.npy", b"depth")
    with pytest.raises(InputError, match="maps.npz is damaged: a map in it is no array"):
        read_maps(tmp_path / "maps.npz", (1, 2, 3))
