"""PLY meshes: tables of all types and orders, and what is painted on them."""

import struct

import numpy as np
import pytest

from support.gltf_files import png

TYPES = {"f4": "float", "f8": "double", "u1": "uchar", "u2": "ushort", "i2": "short", "i4": "int"}
CODES = {"f4": "f", "f8": "d", "u1": "B", "u2": "H", "i2": "h", "i4": "i"}
SQUARE = [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]


def ply(order, *elements, comment=""):
    """A file of elements (name, {column: type}, rows); the type of a list is a pair."""
    kind = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head, body = f"ply\nformat {kind} 1.0\n{comment}", b""
    for name, columns, rows in elements:
        head += f"element {name} {len(rows)}\n"
        for column, of in columns.items():
            listed = isinstance(of, tuple)
            kinds = f"list {TYPES[of[0]]} {TYPES[of[1]]}" if listed else TYPES[of]
            head += f"property {kinds} {column}\n"
        for row in rows:
            for value, of in zip(row, columns.values(), strict=True):
                if not order:
                    flat = [len(value), *value] if isinstance(of, tuple) else [value]
                    body += (" ".join(map(str, flat)) + " ").encode()
                elif isinstance(of, tuple):
                    body += struct.pack(f"{order}{CODES[of[0]]}", len(value))
                    body += struct.pack(f"{order}{len(value)}{CODES[of[1]]}", *value)
                else:
                    body += struct.pack(order + CODES[of], value)
            body += b"" if order else b"\n"
    return (head + "end_header\n").encode("latin-1") + body


XYZ = {"x": "f4", "y": "f4", "z": "f4"}
FACES = {"vertex_indices": ("u1", "i4")}


@pytest.fixture
def read(tmp_path):
    from o3d_jax.data.meshes.reading import read_mesh

    def run(content):
        (tmp_path / "m.ply").write_bytes(content)
        return read_mesh(tmp_path / "m.ply", 2**20)

    return run


@pytest.mark.parametrize("order", ["", "<", ">"])
def test_faces_of_many_sizes_between_other_columns_and_tables_are_read(read, order):
    vertices = [(7, *p, 0.5) for p in [*SQUARE, [2, 2, 0], [2, 0, 1]]]
    faces = [(9, [0, 1, 2, 3], [1.0]), (9, [1, 5, 4], []), (9, [2, 4], [1, 2]), (9, [0, 5, 1], [])]
    made = ply(
        order,
        ("camera", {"fov": "f8", "marks": ("u1", "i2")}, [(40.0, [1, -2]), (2.0, [])]),
        ("vertex", {"flags": "u1", "x": "f8", "y": "f4", "z": "i2", "w": "f4"}, vertices),
        ("face", {"id": "i4", "vertex_index": ("i4", "u2"), "more": ("u1", "f4")}, faces),
        ("edge", {"a": "i4"}, [(1,), (2,)]),
    )
    points = np.array([v[1:4] for v in vertices])
    expected = points[[[0, 1, 2], [0, 2, 3], [1, 5, 4], [0, 5, 1]]]
    np.testing.assert_array_equal(read(made).corners, expected)


KINDS = {"u1": (255, 188), "u2": (65535, 188 * 257), "f4": (1.0, 188 / 255), "i4": (255, 188)}


@pytest.mark.parametrize("order", ["", "<"])
@pytest.mark.parametrize("kind", KINDS)
def test_colors_of_vertices_are_fractions_of_what_their_type_holds(read, kind, order):
    from o3d_jax.data.meshes.scene import LINEAR

    full, some = KINDS[kind]
    columns = {**XYZ, "red": kind, "green": kind, "blue": kind}
    vertices = [(*p, full, some, 0) for p in SQUARE]
    made = ply(order, ("vertex", columns, vertices), ("face", FACES, [([0, 1, 2, 3],)]))
    expected = [1, LINEAR[188], 0, 1]
    np.testing.assert_allclose(read(made).colors, np.tile(expected, (2, 3, 1)), atol=1e-6)


@pytest.mark.parametrize("names", ["diffuse_red diffuse_green diffuse_blue", "r g b"])
def test_colors_are_found_by_all_names_that_programs_have_for_them(read, names):
    columns = {**XYZ, **dict.fromkeys(names.split(), "u1")}
    vertices = [(*p, 255, 0, 255) for p in SQUARE]
    made = ply("<", ("vertex", columns, vertices), ("face", FACES, [([0, 1, 2, 3],)]))
    np.testing.assert_array_equal(read(made).colors, np.tile([1, 0, 1, 1], (2, 3, 1)))


def test_colors_of_faces_stay_with_their_triangles(read):
    columns = {**FACES, "red": "u1", "green": "u1", "blue": "u1", "alpha": "u1"}
    faces = [([0, 1, 2, 3], 255, 0, 0, 51), ([0, 3, 1], 0, 255, 0, 255), ([0, 1], 0, 0, 9, 0)]
    mesh = read(ply("<", ("vertex", XYZ, SQUARE), ("face", columns, faces)))
    expected = np.array([[1, 0, 0, 0.2]] * 2 + [[0, 1, 0, 1]])
    np.testing.assert_allclose(mesh.colors, np.repeat(expected[:, None], 3, axis=1), atol=1e-6)


def test_textures_are_looked_up_by_corner_or_by_vertex_and_by_number(read, tmp_path):
    for number in range(2):
        (tmp_path / f"t\xe4{number}.png").write_bytes(png(np.full((1, 1, 3), 50 + number)))
    by_corner = {**FACES, "texcoord": ("u1", "f4"), "texnumber": "i4"}
    uv = [[0, 0], [0.25, 0], [0.25, 1], [0, 1]]
    faces = [([0, 1, 2, 3], np.ravel(uv), 1), ([0, 1, 3], [0, 0, 1, 0, 0, 0.5], 0)]
    faces.append(([0, 2, 3], [0] * 6, -1))
    comment = "comment TextureFile t\xe40.png\ncomment textureFile t\xe41.png\n"
    mesh = read(ply("<", ("vertex", XYZ, SQUARE), ("face", by_corner, faces), comment=comment))
    textures = mesh.materials[mesh.material]["color"]["texture"]
    shades = [mesh.textures[t][0, 0, 0] if t >= 0 else None for t in textures]
    assert shades == [50, 51, 51, None]
    flat = np.array(uv)[[[0, 1, 2], [0, 2, 3]]] * [1, -1] + [0, 1]  # From the top.
    np.testing.assert_allclose(mesh.uvs[1:3], flat)
    by_vertex = ply(
        "",
        (
            "vertex",
            {**XYZ, "s": "f4", "t": "f4"},
            [(*p, *t) for p, t in zip(SQUARE, uv, strict=True)],
        ),
        ("face", FACES, [([0, 1, 2, 3],)]),
        comment="comment TextureFile t\xe40.png\n",
    )
    mesh = read(by_vertex)
    np.testing.assert_allclose(mesh.uvs, flat)
    assert mesh.textures[0][0, 0].tolist() == [50, 50, 50, 255]
    bare = ply("", ("vertex", XYZ, SQUARE), ("face", FACES, [([0, 1, 2],)]), comment=comment)
    assert "no coordinates" in read(bare).remarks[0]


def test_normals_of_the_file_are_kept(read):
    columns = {**XYZ, "nx": "f4", "ny": "f4", "nz": "f4"}
    vertices = [(*p, 0, 3, 4) for p in SQUARE]
    mesh = read(ply(">", ("vertex", columns, vertices), ("face", FACES, [([0, 1, 2],)])))
    np.testing.assert_allclose(mesh.normals[0], [[0, 0.6, 0.8]] * 3, atol=1e-6)


PLAIN = ply("<", ("vertex", XYZ, SQUARE), ("face", FACES, [([0, 1, 2],), ([0, 1, 2, 3],)]))
TEXT = ply("", ("vertex", XYZ, SQUARE), ("face", FACES, [([0, 1, 2],), ([0, 1, 2, 3],)]))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (PLAIN[:-1], "cut short"),
        (PLAIN + b"\1", "more data than its header says"),
        (PLAIN.replace(b"face 2", b"face 999999999999"), "cut short"),
        (PLAIN.replace(b"vertex 4", b"vertex 999999999999999"), "cut short"),
        (PLAIN.replace(b"uchar int", b"char int").replace(b"\3\0\0\0\0", b"\xff\0\0\0\0"), "-1"),
        (PLAIN.replace(b"float z", b"float x"), "a name twice"),
        (PLAIN.replace(b"float z", b"float depth"), "no vertices with x, y and z"),
        (PLAIN.replace(b"float z", b"half z"), "'property half z'"),
        (PLAIN.replace(b"uchar int", b"uchar half"), "'property list uchar half"),
        (PLAIN.replace(b"\3\0\0\0\0\1\0\0\0", b"\3\0\0\0\0\7\0\0\0"), "not there"),
        (PLAIN.replace(b"\3\0\0\0\0\1\0\0\0", b"\3\0\0\0\0\xff\xff\xff\xff"), "not there"),
        (TEXT.replace(b"3 0 1 2", b"3 0 one 2"), "damaged"),
        (TEXT.replace(b"3 0 1 2", b"nan 0 1 2"), "length nan"),
        (TEXT.replace(b"3 0 1 2", b"2.5 0 1 2"), "length 2.5"),
        (TEXT.replace(b"3 0 1 2", b"1e18 0 1 2"), "cut short"),
        (TEXT[:-5], "cut short"),
        (TEXT + b"1", "more data"),
        (PLAIN.split(b"element face")[0] + b"end_header\n" + bytes(48), "points and Gaussians"),
    ],
)
def test_what_is_not_as_the_format_says_is_refused_by_name(read, content, said):
    from o3d_jax.errors import InputError

    assert content not in (PLAIN, TEXT)
    with pytest.raises(InputError, match=said) as refusal:
        read(content)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("encoding", ["ascii", "binary"])
def test_what_trimesh_writes_is_read_as_it_was(read, encoding):
    import trimesh

    from o3d_jax.data.meshes.scene import LINEAR

    ball = trimesh.creation.icosphere(2, 0.7)
    rgba = np.arange(4 * 162).reshape(-1, 4) % 256
    ball.visual = trimesh.visual.ColorVisuals(vertex_colors=rgba)
    mesh = read(trimesh.exchange.ply.export_ply(ball, encoding=encoding, vertex_normal=True))
    np.testing.assert_allclose(mesh.corners, ball.vertices[ball.faces], atol=1e-6)
    np.testing.assert_allclose(mesh.normals, ball.vertex_normals[ball.faces], atol=1e-6)
    np.testing.assert_allclose(mesh.colors[..., :3], LINEAR[rgba[..., :3]][ball.faces], atol=1e-6)
    np.testing.assert_allclose(mesh.colors[..., 3], rgba[ball.faces][..., 3] / 255, atol=1e-6)
