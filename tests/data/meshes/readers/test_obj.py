"""OBJ and MTL as people's programs write them; what they look like is what is compared."""

import sys
import time

import numpy as np
import pytest

from o3d_jax.data.meshes.readers.painter import _before_comments
from support.drawn_models import draw
from support.gltf_files import png

RED, GREEN = png(np.full((2, 2, 3), [255, 0, 0])), png(np.full((2, 2, 3), [0, 255, 0]))
VERTICES = """v -0.5 -0.5 -0.5
v -0.5 -0.5 0.5
v -0.5 0.5 -0.5
v -0.5 0.5 0.5
v 0.5 -0.5 -0.5
v 0.5 -0.5 0.5
v 0.5 0.5 -0.5
v 0.5 0.5 0.5
vt 0 0
vt 1 0
vt 1 1
vt 0 1
"""
SIDES = ("1/1 2/2 4/3 3/4", "5/1 7/2 8/3 6/4", "1/1 5/2 6/3 2/4", "3/1 4/2 8/3 7/4")
SIDES += ("1/1 3/2 7/3 5/4", "2/1 6/2 8/3 4/4")


def cube(*materials, head="mtllib m.mtl\n"):
    """One side after the other in the materials, each with its `usemtl`."""
    lines = [f"usemtl {materials[i % len(materials)]}\nf {side}\n" for i, side in enumerate(SIDES)]
    return head + VERTICES + "".join(lines)


@pytest.fixture
def drawn(tmp_path):
    """Writes files and draws the first one."""

    def run(**files):
        for name, content in files.items():
            path = tmp_path / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return draw(tmp_path / next(iter(files)).replace("_", "."))

    return run


def assert_all(drawn, hue):
    assert drawn.fault == "" and drawn.remark == ""
    hues = drawn.hues()
    assert hues[hue] == sum(hues.values()) > 1000, hues


def test_a_byte_order_mark_is_no_part_of_the_first_keyword(drawn):
    mark = b"\xef\xbb\xbf"
    assert_all(drawn(m_obj=cube("r"), m_mtl=mark + b"newmtl r\nKd 1 0 0\n"), "red")
    assert_all(drawn(m_obj=mark + cube("r").encode(), m_mtl="newmtl r\nKd 1 0 0\n"), "red")


def test_names_and_comments_may_be_in_latin_1(drawn, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "charset_normalizer", None)  # Nor may others be needed.
    mtl = "# Rücken\nnewmtl Stühl\nKd 1 0 0\n".encode("latin-1")
    assert_all(drawn(m_obj=cube("Stühl").encode("latin-1"), m_mtl=mtl), "red")
    mtl = b"# R\xfccken\n" + "newmtl Stühl\nKd 1 0 0\n".encode()  # Comments by another program.
    assert_all(drawn(m_obj=cube("Stühl"), m_mtl=mtl), "red")
    assert_all(drawn(m_obj=cube("Stühl").encode("latin-1"), m_mtl=mtl), "red")
    (tmp_path / "stühl.png").write_bytes(RED)
    mtl = "newmtl r\nmap_Kd stühl.png\n"
    assert_all(drawn(m_obj=cube("r"), m_mtl=mtl.encode("latin-1")), "red")
    assert_all(drawn(m_obj=cube("r"), m_mtl=mtl), "red")


@pytest.mark.parametrize("order", ["le", "be"])
def test_files_in_utf_16_are_read_as_their_mark_says(drawn, order):
    """As Windows' editor saves what it calls Unicode."""

    def saved(text):
        return "\ufeff".encode(f"utf-16-{order}") + text.encode(f"utf-16-{order}")

    obj, mtl = cube("Stühl").replace("\n", "\r\n"), "newmtl Stühl\r\nKd 1 0 0\r\n"
    assert_all(drawn(m_obj=saved(obj), m_mtl=mtl), "red")
    assert_all(drawn(m_obj=obj, m_mtl=saved(mtl)), "red")


def test_every_library_is_read_however_many_lines_name_them(drawn, tmp_path):
    files = {"a_mtl": "newmtl a\nKd 1 0 0\n", "b_mtl": "newmtl b\nKd 0 0 1\n"}
    for head in ("mtllib a.mtl\nmtllib b.mtl\n", "mtllib a.mtl b.mtl\n", "mtllib  b.mtl  a.mtl\n"):
        hues = drawn(m_obj=cube("a", "b", head=head), **files).hues()
        assert hues["red"] > 500 < hues["blue"] and hues["white"] == 0, head
        assert hues["other"] < 150, head  # Pixels on the edges show two sides.
    (tmp_path / "two words.mtl").write_text("newmtl b\nKd 0 1 0\n")
    head = "mtllib a.mtl two words.mtl b.mtl\n"
    hues = drawn(m_obj=cube("a", "b", head=head), **files).hues()
    assert hues["red"] > 500 < hues["green"] and hues["blue"] == 0  # The first that has it counts.
    assert "c.mtl is missing" in drawn(m_obj=cube("a", head="mtllib a.mtl c.mtl\n"), **files).fault


def test_a_material_that_is_nowhere_is_white_and_said_once(drawn):
    files = {"m_mtl": "newmtl r\nmap_Kd r.png\n", "r_png": RED}
    made = drawn(m_obj=cube("r", "other"), **files)
    hues = made.hues()
    assert hues["red"] > 500 < hues["white"] and hues["other"] < 150  # On the edges.
    assert made.remark == "material 'other' is in none of its libraries; drawn white"
    made = drawn(m_obj=cube("a", "b", "c", "d", head=""), **files)
    assert made.hues()["white"] > 1000 and made.remark.count("drawn white") == 1
    assert "'a', 'b', 'c' and 1 more" in made.remark


def test_a_material_without_a_name_is_none_of_the_others(drawn):
    files = {"m_mtl": "newmtl r\nKd 1 0 0\nnewmtl\nKd 0 1 0\n"}
    assert_all(drawn(m_obj=cube("r"), **files), "red")
    hues = drawn(m_obj=cube("r", ""), **files).hues()
    assert hues["red"] > 500 < hues["green"] and hues["white"] == 0
    made = drawn(m_obj=cube("r", ""), m_mtl="newmtl r\nKd 1 0 0\n")
    assert made.hues()["red"] > 500 < made.hues()["white"]
    assert made.remark == "material '' is in none of its libraries; drawn white"


def test_comments_may_follow_names_which_may_have_their_sign_too(drawn, tmp_path):
    (tmp_path / "r #1.png").write_bytes(RED)
    (tmp_path / "m #2.mtl").write_text("newmtl a #1\nmap_Kd r #1.png # ../see: there\n")
    head = "mtllib m #2.mtl\n"
    assert_all(drawn(m_obj=cube("a #1 # see: there", head=head)), "red")
    mtl = "newmtl a #1\nKd 1 0 0\nnewmtl a\nKd 0 1 0\n"
    assert_all(drawn(m_obj=cube("a #1", head="mtllib m.mtl # ../see: there\n"), m_mtl=mtl), "red")
    assert_all(drawn(m_obj=cube("a #2"), m_mtl=mtl), "green")


def test_a_line_of_signs_or_of_blanks_takes_no_time():
    """Half a megabyte of signs, cut at each, would take 30 GB; of blanks, seen from each, hours."""
    assert sum(map(len, _before_comments("a" + " #" * 1000))) < 100
    start = time.process_time()
    assert _before_comments("a" + " " * 100_000 + "b  # c") == ["a" + " " * 100_000 + "b"]
    assert time.process_time() - start < 0.5


@pytest.mark.parametrize(
    "options",
    [
        "-s 2 2 1 -o 0 0 0",
        "-s 2 -o 0.5 0.5 -t 0 0 0",
        "-mm 0 1 -clamp on -texres 512 -bm 0.2",
        "-blendu on -blendv off -imfchan r -cc on -boost 1 -S 1 1 1",
        "-o 1",
    ],
)
def test_options_of_a_texture_are_no_part_of_its_name(drawn, tmp_path, options):
    (tmp_path / "my r.png").write_bytes(RED)
    mtl = f"newmtl r\nmap_Kd {options} my r.png\nmap_d {options} my r.png\n"
    assert_all(drawn(m_obj=cube("r"), m_mtl=mtl), "red")


def test_options_move_each_texture_by_itself(tmp_path):
    from o3d_jax.data.meshes.mesh import Wrap
    from o3d_jax.data.meshes.reading import read_mesh

    (tmp_path / "a.png").write_bytes(RED)
    (tmp_path / "b.png").write_bytes(png(np.full((2, 2, 3), 77)))
    mtl = "newmtl r\nmap_Kd -s 2 3 -o 0.25 0.5 a.png\nmap_d -o 0.125 -clamp on b.png\n"
    (tmp_path / "m.mtl").write_text(mtl)
    (tmp_path / "m.obj").write_text("mtllib m.mtl\n" + VERTICES + "usemtl r\nf 1/2 2/3 3/4\n")
    mesh = read_mesh(tmp_path / "m.obj", 2**20)
    uv = np.array([[1, 0], [1, 1], [0, 1]])
    color, alpha = uv * [2, 3] + [0.25, 0.5], uv + [0.125, 0]
    # OBJ counts v from the bottom, textures are stored from the top.
    np.testing.assert_allclose(mesh.uvs[0], color * [1, -1] + [0, 1], atol=1e-6)
    np.testing.assert_allclose(mesh.opacity_uvs[0], alpha * [1, -1] + [0, 1], atol=1e-6)
    material = mesh.materials[mesh.material[0]]
    assert (material["color"]["wrap_u"], material["opacity"]["wrap_u"]) == (Wrap.REPEAT, Wrap.CLAMP)
    assert mesh.textures[material["opacity"]["texture"]][0, 0, 3] == 77  # Its gray, as alpha.
    assert mesh.textures[material["color"]["texture"]][0, 0].tolist() == [255, 0, 0, 255]
    assert material["mode"] == 1


def test_holes_are_where_the_opacity_map_says(drawn):
    half = np.zeros((8, 8, 3))
    half[:, 4:] = 255
    files = {"m_mtl": "newmtl r\nKd 1 0 0\nmap_d h.png\n", "h_png": png(half)}
    head = "mtllib m.mtl\nv -1 -1 0\nv 1 -1 0\nv 1 1 0\nv -1 1 0\nvt 0 0\nvt 1 0\nvt 1 1\nvt 0 1\n"
    made = drawn(m_obj=head + "usemtl r\nf 1/1 2/2 3/3 4/4\n", **files)
    alpha = made.rgba[0, ..., 3] > 127
    left, right = alpha[:, :32].sum(), alpha[:, 32:].sum()
    assert left < 30 < 500 < right and made.hues()["red"] > 500


def test_names_that_differ_in_case_alone_are_found(drawn, tmp_path):
    (tmp_path / "Maps").mkdir()
    (tmp_path / "Maps" / "R.PNG").write_bytes(RED)
    mtl = "newmtl r\nmap_Kd maps\\r.png\n"
    assert_all(drawn(m_obj=cube("r", head="mtllib M.MTL\n"), m_mtl=mtl), "red")
    (tmp_path / "outside").symlink_to(tmp_path.parent)
    made = drawn(m_obj=cube("r"), m_mtl="newmtl r\nmap_Kd OUTSIDE/x.png\n")
    assert "outside its folder" in made.fault


def test_textures_are_beside_their_library_or_else_beside_the_model(drawn):
    model = {"m_obj": cube("r", head="mtllib mats/m.mtl\n"), "r_png": GREEN}
    library = {"mats__m_mtl": "newmtl r\nmap_Kd r.png\n"}
    assert_all(drawn(**model, **library), "green")
    assert_all(drawn(**model, **library, mats__r_png=RED), "red")
    library["mats__m_mtl"] = "newmtl r\nmap_Kd ../maps/r.png\n"
    assert_all(drawn(**model, **library, maps__r_png=RED), "red")
    library["mats__m_mtl"] = "newmtl r\nmap_Kd ../../r.png\n"
    assert "outside its folder" in drawn(**model, **library).fault


def test_corners_may_name_coordinates_that_are_nowhere(drawn):
    text = cube("r").replace("vt", "# vt").replace("/1 ", "/1/1 ")
    mtl = {"m_mtl": "newmtl r\nKd 1 0 0\n"}
    assert_all(drawn(m_obj=text, **mtl), "red")
    made = drawn(m_obj=text, m_mtl="newmtl r\nKd 1 0 0\nmap_Kd g.png\n", g_png=GREEN)
    assert made.hues()["red"] > 1000 and "no coordinates" in made.remark


def test_negative_numbers_count_from_the_last_one_so_far(drawn):
    def backwards(corner):
        position, uv = map(int, corner.split("/"))
        return f"{position - 9}/{uv - 5}"  # Of 8 and 4.

    faces = "".join(f"f {' '.join(map(backwards, side.split()))}\n" for side in SIDES)
    more = "v 9 9 9\nvt 9 9\n"  # After the faces: they count from where they stand.
    files = {"m_mtl": "newmtl r\nmap_Kd r.png\n", "r_png": RED}
    made = drawn(m_obj="mtllib m.mtl\n" + VERTICES + "usemtl r\n" + faces + more, **files)
    assert_all(made, "red")
    np.testing.assert_array_equal(made.rgba, drawn(m_obj=cube("r"), **files).rgba)


def test_lines_may_go_on_and_end_as_on_any_system(drawn):
    files = {"m_mtl": "newmtl r\nKd 1 0 0\n"}
    text = (
        cube("r").replace(" 4/3", " \\\n 4/3").replace("v -0.5 -0.5 0.5\n", "v -0.5 \\\n-0.5 0.5\n")
    )
    text = "# C:\\models\\\n" + text.replace("f 1", "f\t1")
    whole = drawn(m_obj=cube("r"), **files).rgba
    for end in ("\n", "\r\n", "\r"):
        made = drawn(m_obj=text.replace("\n", end), **files)
        assert_all(made, "red")
        np.testing.assert_array_equal(made.rgba, whole)


def test_all_ways_to_write_a_corner_are_one(tmp_path):
    from o3d_jax.data.meshes.reading import read_mesh

    head = VERTICES + "vn 0 0 2\nvn 0 1 0\n"
    for corners in ("1/2/1 2//2 3", "1/2/1 2/0/2 3//", "-8/-3/-2 -7//-1 -6/"):
        (tmp_path / "m.obj").write_text(head + f"f {corners}\n")
        mesh = read_mesh(tmp_path / "m.obj", 2**20)
        across = np.cross([0, 0, 1], [0, 1, 0])
        expected = [[0, 0, 1], [0, 1, 0], across]  # What has no normal has the face's.
        np.testing.assert_allclose(mesh.normals[0], expected, atol=1e-6)


def test_colors_of_vertices_are_srgb_fractions_or_bytes(tmp_path):
    from o3d_jax.data.meshes.reading import read_mesh
    from o3d_jax.data.meshes.scene import LINEAR

    for scale in (1, 255):
        rows = "".join(
            f"v {p} {c * scale / 255} 0 {scale}\n"
            for p, c in (("0 0 0", 51), ("1 0 0", 188), ("0 1 0", 0))
        )
        (tmp_path / "m.obj").write_text(rows + "v 9 9 9\nf 1 2 3\nf 1 2 4\n")
        mesh = read_mesh(tmp_path / "m.obj", 2**20)
        np.testing.assert_allclose(mesh.colors[0, :, 0], LINEAR[[51, 188, 0]], atol=1e-6)
        np.testing.assert_allclose(mesh.colors[0, :, 2:], 1)
        np.testing.assert_allclose(mesh.colors[1, 2], 1)  # One without is white.


def test_what_is_no_number_in_other_programs_words_is_none_here(tmp_path):
    """As C's libraries print it, for normals of faces without an area above all."""
    from o3d_jax.data.meshes.reading import read_mesh

    head = VERTICES + "v nan 0 0\nvn -nan(ind) 0 -1.#IND00\nvn 0 1.#QNAN inf\nvn 0 2 0 # up\n"
    (tmp_path / "m.obj").write_text(head + "f 1//1 2//2 3//3\nf 1 2 9\n")
    mesh = read_mesh(tmp_path / "m.obj", 2**20)
    across = np.cross([0, 0, 1], [0, 1, 0])
    np.testing.assert_allclose(mesh.normals, [[across, across, [0, 1, 0]]], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("v -0.5 -0.5 -0.5", "v -0.5 -0.5"), "'v -0.5 -0.5'"),
        (("v -0.5 -0.5 -0.5", "v -0,5 -0.5 -0.5"), "'v -0,5 -0.5 -0.5'"),
        (("vt 0 0", "vt"), "not read"),
        (("f 1/1 2/2", "f 1/1 2/x"), "'f 1/1 2/x 4/3 3/4'"),
        (("f 1/1 2/2", "f 1/1 2/2/3/4"), "'f 1/1 2/2/3/4 4/3 3/4'"),
        (("f 1/1 2/2", "f 1/1 99999999999999999999/2"), "'f 1/1 99999999999999999999/2"),
        (("f 1/1 2/2", "f 1/1 9/2"), "the position 9 of 8"),
        (("f 1/1 2/2", "f 0/1 2/2"), "the position 0 of 8"),
        (("f 1/1 2/2", "f -9/1 2/2"), "the position 0 of 8"),
        (("f 1/1 2/2", "f 1/1 2/7"), "the texture coordinate 7 of 4"),
        (("f 1/1 2/2", "f /1 2/2"), "the position 0 of 8"),
        (("Kd 1 0 0", "Kd 1 x 0"), "'Kd 1 x 0'"),
        (("Kd 1 0 0", "Kd 1 0"), "'Kd 1 0'"),
        (("Kd 1 0 0", "d nan"), "'d nan'"),
        (("Kd 1 0 0", "map_Kd -s x.png"), "'map_Kd -s x.png'"),
        (("mtllib m.mtl", "mtllib " + "m.mtl " * 40), "libraries in a line"),
    ],
)
def test_what_is_not_as_the_format_says_is_refused_by_name(drawn, change, said):
    files = {"m_obj": cube("r"), "m_mtl": "newmtl r\nKd 1 0 0\n"}
    changed = {name: text.replace(*change, 1) for name, text in files.items()}
    assert changed != files
    if said == "not read":  # A keyword alone says nothing, but then one coordinate lacks.
        said = "the texture coordinate 4 of 3"
    made = drawn(**changed)
    assert said in made.fault and "\n" not in made.fault


def test_what_trimesh_writes_is_read_as_it_was(tmp_path):
    import trimesh

    from o3d_jax.data.meshes.reading import read_mesh

    ball = trimesh.creation.icosphere(2, 0.7)
    ball.apply_translation([3, -1, 2])
    ball.visual = trimesh.visual.ColorVisuals(vertex_colors=np.arange(4 * 162).reshape(-1, 4) % 256)
    assert ball.vertex_normals.shape == ball.vertices.shape
    (tmp_path / "m.obj").write_text(
        trimesh.exchange.obj.export_obj(ball, include_normals=True, digits=12)
    )
    mesh = read_mesh(tmp_path / "m.obj", 2**20)
    np.testing.assert_allclose(mesh.corners, ball.vertices[ball.faces], atol=1e-11)
    np.testing.assert_allclose(mesh.normals, ball.vertex_normals[ball.faces], atol=1e-6)
    from o3d_jax.data.meshes.scene import LINEAR

    rgb = LINEAR[ball.visual.vertex_colors[..., :3]][ball.faces]
    np.testing.assert_allclose(mesh.colors[..., :3], rgb, atol=1e-6)


def test_keywords_may_be_in_capitals_and_blanks_may_follow_a_backslash(drawn):
    text = cube("r").replace("usemtl", "USEMTL").replace("mtllib", "MTLLIB")
    for capital in ("v ", "f "):
        text = text.replace(f"\n{capital}", f"\n{capital.upper()}")
    assert "\nF " in text and "\nV " in text
    assert_all(drawn(m_obj=text, m_mtl="newmtl r\nKd 1 0 0\n"), "red")
    first, *rest = cube("r").split("\nf ")
    broken = "\nf ".join([first, *(face.replace(" ", " \\ \t\n", 1) for face in rest)])
    assert broken.count("\\ \t\n") == len(rest) > 1
    assert_all(drawn(m_obj=broken, m_mtl="newmtl r\nKd 1 0 0\n"), "red")
