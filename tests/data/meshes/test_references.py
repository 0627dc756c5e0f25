"""What models refer to, whether our readers open it or not."""

import pytest

from o3d_jax.data.meshes.readers.files import ModelFiles
from o3d_jax.data.meshes.readers.references import check_references
from o3d_jax.data.meshes.reading import read_mesh
from o3d_jax.errors import InputError
from support.gltf_files import cube

TRIANGLE = "v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"
INSIDE = ["normal.png", "sub/normal.png", "a%20b.png", "data:image/png;base64,AAAA", "x/../n.png"]
OUTSIDE = [
    "/etc/passwd",
    "../normal.png",
    "sub/../../normal.png",
    "..%2Fnormal.png",
    "..\\normal.png",
    "C:/normal.png",
    "file:///etc/passwd",
    "http://example.org/normal.png",
    "link/normal.png",
]


@pytest.fixture
def folder(tmp_path):
    """With a link to the folder above it."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "link").symlink_to(tmp_path)
    return tmp_path / "models"


def check(folder, name, data):
    """What is wrong, if anything is, with a model that our reader does read."""
    (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())
    read_mesh(folder / name, 2**20)
    try:
        check_references(ModelFiles(folder / name, 2**20))
    except InputError as error:
        return str(error)
    return ""


def with_normal_map(uri):
    made = cube()
    made.tree["images"] = [{"uri": uri}]
    made.tree["textures"] = [{"source": 0}]
    made.tree["materials"][0]["normalTexture"] = {"index": 0}
    return made


def test_gltf_files_may_refer_to_their_folder_only_in_what_is_not_read_too(folder):
    for uri in INSIDE:
        assert check(folder, "m.glb", with_normal_map(uri).glb()) == "", uri
    for uri in OUTSIDE:
        assert "outside its folder" in check(folder, "m.glb", with_normal_map(uri).glb()), uri
    made = cube()
    made.tree["extensions"] = {"EXT_of_somebody": {"sounds": [{"uri": "../sound.mp3"}]}}
    assert "'../sound.mp3', outside its folder" in check(folder, "m.glb", made.glb())
    made.tree["extensions"] = {}
    made.tree["extras"] = {"uri": "https://example.org/author"}
    assert check(folder, "m.glb", made.glb()) == ""


@pytest.mark.parametrize("keyword", ["bump", "map_Bump -bm 0.5", "disp", "norm", "map_Pr", "refl"])
def test_obj_files_may_refer_to_their_folder_only_in_what_is_not_read_too(folder, keyword):
    for name in ("normal.png", "sub/a normal.png", "x/../n.png"):
        (folder / "m.mtl").write_text(f"newmtl /paint\n{keyword} {name}\n")
        assert check(folder, "m.obj", f"mtllib m.mtl\n{TRIANGLE}") == "", name
    for name in (
        "/etc/pass wd",
        "../normal.png",
        "a b/../../n.png",
        "a\\\n ../n.png",
        "link/n.png",
    ):
        (folder / "m.mtl").write_text(f"newmtl paint\n{keyword} {name}\n")
        assert "outside its folder" in check(folder, "m.obj", f"mtllib m.mtl\n{TRIANGLE}"), name


def test_the_materials_that_blender_reads_unasked_are_looked_at(folder):
    (folder / "m.mtl").write_text("newmtl paint\nbump ../normal.png\n")
    assert "outside its folder" in check(folder, "m.obj", TRIANGLE)
    (folder / "m.mtl").unlink()
    assert check(folder, "m.obj", TRIANGLE) == ""


def test_materials_in_folders_below_and_with_spaces_are_looked_at(folder):
    (folder / "sub").mkdir()
    (folder / "sub" / "my m.mtl").write_text("newmtl paint\nbump ../../normal.png\n")
    (folder / "m.obj").write_text(f"mtllib sub/my m.mtl\n{TRIANGLE}")
    with pytest.raises(InputError, match="outside its folder"):
        check_references(ModelFiles(folder / "m.obj", 2**20))
