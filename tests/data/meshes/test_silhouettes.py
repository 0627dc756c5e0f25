"""What models cover, compared with twins that need no care: triangulated, or at the origin."""

import struct

import numpy as np
import pytest

from support.drawn_models import draw, overlap
from support.gltf_files import Gltf

SAME = 0.99
"""Of intersection over union; the snap of corners to 1/256 pixel moves outlines by 0.001."""

U = np.array([[0, 0], [3, 0], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3]], float)
U_CUT = [[0, 1, 4], [0, 4, 5], [1, 2, 3], [1, 3, 4], [0, 5, 6], [0, 6, 7]]
DART = np.array([[0, 2], [-2, -1], [0, 0], [2, -1]], float)
DART_CUT = [[0, 1, 2], [0, 2, 3]]
TURNS = np.arange(10) * np.pi / 5
STAR = np.stack([np.sin(TURNS), np.cos(TURNS)], -1) * np.where(np.arange(10) % 2, 1, 3)[:, None]
STAR_CUT = [[i, (i + 1) % 10, (i - 1) % 10] for i in range(0, 10, 2)]
STAR_CUT += [[1, 3, 5], [1, 5, 9], [5, 7, 9]]
SHAPES = {"u": (U, U_CUT), "dart": (DART, DART_CUT), "star": (STAR, STAR_CUT)}


def slab(name, start, whole):
    """A plate in a shape: points and polygons, its caps as one polygon or as cut by hand."""
    flat, cut = SHAPES[name]
    n = len(flat)
    points = np.concatenate([np.c_[flat, np.full(n, 0.2)], np.c_[flat, np.full(n, -0.2)]])
    cap = np.roll(np.arange(n), start)
    caps = [cap] if whole else np.array(cut)
    sides = [[i, i + n, (i + 1) % n + n, (i + 1) % n] for i in range(n)]
    return points, [*map(list, caps), *[[i + n for i in c[::-1]] for c in caps], *sides]


def obj(points, polygons):
    text = "".join(f"v {x:.6f} {y:.6f} {z:.6f}\n" for x, y, z in points)
    return (text + "".join(f"f {' '.join(str(i + 1) for i in p)}\n" for p in polygons)).encode()


def ply(points, polygons, order="<"):
    kind = {"": "ascii", "<": "binary_little_endian", ">": "binary_big_endian"}[order]
    head = f"ply\nformat {kind} 1.0\nelement vertex {len(points)}\nproperty double x\n"
    head += f"property double y\nproperty double z\nelement face {len(polygons)}\n"
    head = (head + "property list uchar int vertex_indices\nend_header\n").encode()
    if not order:
        rows = [*map(list, points), *([len(p), *p] for p in polygons)]
        return head + "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
    faces = b"".join(struct.pack(f"{order}B{len(p)}i", len(p), *p) for p in polygons)
    return head + np.asarray(points).astype(f"{order}f8").tobytes() + faces


WRITERS = {
    "a.obj": obj,
    "text.ply": lambda *shape: ply(*shape, ""),
    "little.ply": ply,
    "big.ply": lambda *shape: ply(*shape, ">"),
}


@pytest.mark.parametrize("file", WRITERS)
@pytest.mark.parametrize("name", SHAPES)
def test_concave_polygons_cover_what_their_hand_cut_twins_cover(tmp_path, name, file):
    (tmp_path / "twin.obj").write_bytes(obj(*slab(name, 0, whole=False)))
    twin = draw(tmp_path / "twin.obj", size=128)
    for start in range(0, len(SHAPES[name][0]), 3):
        (tmp_path / file).write_bytes(WRITERS[file](*slab(name, start, whole=True)))
        assert overlap(draw(tmp_path / file, size=128), twin) >= SAME


def sphere():
    """Points, triangles, and the axis points last."""
    turns, heights = np.arange(24) * np.pi / 12, np.arange(1, 12) * np.pi / 12
    ring = np.stack(
        [
            np.sin(heights)[:, None] * np.cos(turns),
            np.sin(heights)[:, None] * np.sin(turns),
            np.cos(heights)[:, None] + 0 * turns,
        ],
        -1,
    ).reshape(-1, 3)
    points = np.concatenate([ring, [[0, 0, 1], [0, 0, -1]]])
    i, j = np.meshgrid(np.arange(10), np.arange(24), indexing="ij")
    a, b, after = 24 * i + j, 24 * i + (j + 1) % 24, 24
    faces = [np.stack([a, a + after, b + after], -1), np.stack([a, b + after, b], -1)]
    last = np.arange(24)
    caps = [np.stack([0 * last + 264, last, (last + 1) % 24], -1)]
    caps += [np.stack([0 * last + 265, 240 + (last + 1) % 24, 240 + last], -1)]
    return points, np.concatenate([*(f.reshape(-1, 3) for f in faces), *caps])


FAR = np.array([485230.5, 5427800.25, 312.0])  # Meters on a map (UTM).


def gltf(points, faces, translation=None, offset=(0, 0, 0)):
    """With the points in the accessor at an offset, and the node at a translation."""
    made = Gltf()
    primitive = made.triangle(points + offset)
    primitive["indices"] = made.accessor(np.reshape(faces, -1), "uint16")
    made.node(primitive, **({} if translation is None else {"translation": list(translation)}))
    return made.glb()


FAR_WRITERS = {
    "far.obj": lambda p, f: obj(p + FAR, f),
    "text.ply": lambda p, f: ply(p + FAR, f, ""),
    "far.ply": lambda p, f: ply(p + FAR, f),
    "far.glb": lambda p, f: gltf(p, f, FAR),
    # Whole numbers: at 2^22, float32 has steps of 1/2.
    "offset.glb": lambda p, f: gltf(np.round(p * 64) * 4, f, [-(2.0**22)] * 3, [2**22] * 3),
}


@pytest.mark.parametrize("file", FAR_WRITERS)
def test_models_at_map_coordinates_look_as_at_the_origin(tmp_path, file):
    points, faces = sphere()
    if file == "offset.glb":
        points = np.round(points * 64) / 64
    near = (obj if file.endswith("obj") else ply if file.endswith("ply") else gltf)(points, faces)
    (tmp_path / file.replace(".", "_near.")).write_bytes(near)
    (tmp_path / file).write_bytes(FAR_WRITERS[file](*sphere()))
    far, near = draw(tmp_path / file, size=128), draw(tmp_path / file.replace(".", "_near."), 128)
    assert overlap(far, near) >= SAME
    both = (far.rgba[..., 3] == 255) & (near.rgba[..., 3] == 255)
    # The normals too: they would shade the sphere in steps. Snapped outlines, in a few pixels.
    off = np.abs(far.rgba.astype(int) - near.rgba)[both].max(axis=-1)
    assert both.sum() > 4000 and np.quantile(off, 0.99) <= 2
