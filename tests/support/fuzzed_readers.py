"""The readers of files that users give, each with small valid files to be damaged."""

import base64
import hashlib
import io
import itertools
import json
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from o3d_jax.errors import InputError
from support.gltf_files import Gltf, png


class FuzzedReader(NamedTuple):
    """A reader, and what it reads."""

    name: str
    sets: list[dict[str, bytes]]
    """Files by name; the first one is given to the reader, which may open the others."""
    read: Callable[[Path], object]


def readers() -> list[FuzzedReader]:
    """All of them."""
    from o3d_jax.cli import config_in
    from o3d_jax.data.orbits.folder import read_orbit
    from o3d_jax.data.orbits.names import select
    from o3d_jax.evaluation.protocol import read_protocol
    from o3d_jax.media.ply import read_ply
    from o3d_jax.media.splat import read_splat
    from o3d_jax.weights.pytorch.rules import read_file

    names = [f"000-{i:03d}__abc{i}/{i % 2}" for i in range(9)]
    return [
        FuzzedReader("gltf", gltf_files(), draw_or_read),
        FuzzedReader("obj", obj_files(), draw_or_read),
        FuzzedReader("ply", ply_meshes(), draw_or_read),
        FuzzedReader("gaussians", gaussian_plys(), lambda path: read_ply(path, drop_bad=True)),
        FuzzedReader("splat", splats(), read_splat),
        FuzzedReader("safetensors", safetensors_files(), lambda path: all_of(read_file(path))),
        FuzzedReader("orbit", orbits(), lambda path: read_orbit(path.parent)),
        FuzzedReader("ids", ids_files(), lambda path: select(names, path)),
        FuzzedReader("image", pictures(), read_picture),
        FuzzedReader("protocol", protocols(), lambda path: read_protocol(str(path))),
        FuzzedReader("config.json", model_configs(), read_model_config),
        FuzzedReader("config.py", configs(), config_in),
    ]


def planted() -> FuzzedReader:
    """One that does what none should, to see that it is found."""
    numbers = itertools.count()

    def read(path: Path) -> None:
        number = next(numbers)
        if number == 1:
            raise ZeroDivisionError("planted")
        if number == 2:
            time.sleep(60)
        if number == 3:
            np.ones(2**25)  # 256 MiB.
        if number == 4:
            raise InputError("a\nb")

    return FuzzedReader("planted", [{"a.txt": b"a"}], read)


DRAWN = False
"""Whether meshes are drawn too, which takes longer than reading them."""


def draw_or_read(path: Path) -> None:
    from o3d_jax.data.meshes.drawing import draw_orbit, prepare_scene
    from o3d_jax.data.meshes.reading import fit, read_mesh
    from o3d_jax.geometry.orbits import orbit_poses

    mesh = fit(read_mesh(path, 2**24), 1.0, 0.6)
    if DRAWN:
        draw_orbit(prepare_scene(mesh), orbit_poses(10.0, np.array([20.0]), 1.5), 49.1, 24)


def all_of(source) -> None:
    """Reads all tensors of a file of weights, as far as their types are known."""
    from o3d_jax.weights.pytorch.safetensors import FLOATS

    for tensor in source.tensors:
        if tensor.spec.dtype in FLOATS:
            tensor.read()


def read_picture(path: Path) -> None:
    """As sample.py does, with a mask if there is one."""
    from o3d_jax.media.foreground import read_foreground, recentre_on_white

    mask = path.with_name("mask.png")
    found = read_foreground(path, mask if mask.exists() else None)
    recentre_on_white(found.rgba, 48)


def read_model_config(path: Path) -> None:
    """As part of a model without weights."""
    from o3d_jax.weights.checkpoint import whole_config

    weights = path.with_name("weights")
    weights.mkdir(exist_ok=True)
    path.with_name("checksum").write_text(hashlib.blake2b(digest_size=16).hexdigest())
    whole_config(path.parent)


def gltf_files() -> list[dict[str, bytes]]:
    made = Gltf()
    corners = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]
    texture = {**made.texture(np.arange(48).reshape(4, 4, 3)), "texCoord": 1}
    texture["extensions"] = {"KHR_texture_transform": {"offset": [0.1, 0.2], "rotation": 0.5}}
    glow = made.texture(np.full((2, 2, 4), 99))
    made.tree["samplers"] = [{"wrapS": 33071, "wrapT": 33648}]
    made.tree["textures"][0]["sampler"] = 0
    look = {"pbrMetallicRoughness": {"baseColorTexture": texture}, "alphaMode": "MASK"}
    look |= {"emissiveTexture": glow, "emissiveFactor": [0.5, 0.5, 0.5], "doubleSided": True}
    uvs = made.accessor([[0, 0], [65535, 0], [0, 65535], [9, 9]], "uint16", normalized=True)
    primitive = made.triangle(
        corners,
        look,
        NORMAL=made.accessor(corners),
        TEXCOORD_0=uvs,
        TEXCOORD_1=uvs,
        COLOR_0=made.accessor([[1, 1, 0.5]] * 4),
        JOINTS_0=made.accessor([[0, 1, 0, 0]] * 4, "uint8"),
        WEIGHTS_0=made.accessor([[0.5, 0.5, 0, 0]] * 4),
    )
    primitive["indices"] = made.accessor([0, 1, 2, 0, 2, 3, 0, 3, 1], "uint8")
    primitive["targets"] = [{"POSITION": made.accessor(corners)}]
    inverse = made.accessor(np.stack([np.eye(4)] * 2))
    made.tree["skins"] = [{"joints": [1, 2], "inverseBindMatrices": inverse}]
    made.node(primitive, {"weights": [0.5]}, skin=0)
    made.tree["nodes"] += [
        {"translation": [0, 5, 0]},
        {"rotation": [0, 0, 0, 1], "scale": [1, 2, 1]},
    ]
    made.tree["nodes"].append({"children": [1, 2], "matrix": np.eye(4).ravel().tolist()})
    made.tree["scenes"][0]["nodes"] += [3]
    sparse = Gltf()
    indices = {"bufferView": sparse.view(b"\1\2\0\0"), "componentType": 5121}
    values = {"bufferView": sparse.view(np.float32([[1, 0, 0], [0, 1, 0]]).tobytes())}
    sparse.tree["accessors"] = [
        {
            "componentType": 5126,
            "count": 4,
            "type": "VEC3",
            "sparse": {"count": 2, "indices": indices, "values": values},
        }
    ]
    sparse.node({"attributes": {"POSITION": 0}, "mode": 5}, translation=[1, 2, 3])
    apart = json.loads(
        sparse.glb()[20:].split(b"\0")[0].decode(errors="ignore").rpartition("}")[0] + "}"
    )
    apart["buffers"] = [{"uri": "data.bin", "byteLength": len(sparse.data)}]
    uri = Gltf()
    uri.node(uri.triangle())
    uri.glb()
    encoded = base64.b64encode(uri.data).decode()
    uri.tree["buffers"] = [{"uri": "data:;base64," + encoded, "byteLength": len(uri.data)}]
    return [
        {"m.glb": made.glb()},
        {"m.gltf": json.dumps(apart).encode(), "data.bin": sparse.data},
        {"m.gltf": json.dumps(uri.tree).encode()},
    ]


def obj_files() -> list[dict[str, bytes]]:
    texture = png(np.arange(48).reshape(4, 4, 3) * 5)
    tiff = io.BytesIO()
    Image.fromarray(np.arange(12, dtype=np.uint16).reshape(3, 4) * 999).save(tiff, "TIFF")
    tga, gif, bmp = io.BytesIO(), io.BytesIO(), io.BytesIO()
    small = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    small.save(tga, "TGA", compression="tga_rle")
    small.save(gif, "GIF")
    small.save(bmp, "BMP")
    obj = b"""mtllib m.mtl
v 0 0 0 1 0 0
v 1 0 0 0 1 0
v 1 1 0 0 0 1
v 0.5 0.25 0 1 1 1
v 0 1 1
vt 0 0
vt 1 0
vt 1 1
vn 0 0 1
vn 0 1 0
usemtl a
f 1/1/1 2/2/1 3/3/2 4/1/1
usemtl b
f 1//1 2//1 5//2
f -5 -4 \\
 -3 -1
f 1/1 3/2 5/3
usemtl none
f 1 2 3
"""
    mtl = b"""newmtl a
Kd 0.5 0.25 1
d 0.5
map_Kd -s 2 2 1 -o 0.5 0 0 -clamp on %s
map_d -mm 0 1 %s
newmtl b
Kd 1 0 0
Tr 0.25
"""
    found = []
    for name, data in (
        ("t.png", texture),
        ("t.tif", tiff.getvalue()),
        ("t.tga", tga.getvalue()),
        ("t.gif", gif.getvalue()),
        ("t.bmp", bmp.getvalue()),
    ):
        files = {"m.obj": obj, "m.mtl": mtl % (name.encode(), name.encode()), name: data}
        found.append(files)
    return found


def ply_meshes() -> list[dict[str, bytes]]:
    square = [(0, 0, 0), (1, 0, 0), (0.2, 0.3, 0), (0, 1, 0), (1, 1, 1)]
    faces = [[0, 1, 2, 3], [0, 1, 4], [1, 2, 4]]
    found = []
    for order, kind in (("", "ascii"), ("<", "binary_little_endian"), (">", "binary_big_endian")):
        head = f"ply\nformat {kind} 1.0\ncomment TextureFile t.png\nelement vertex 5\n"
        head += "property float x\nproperty float y\nproperty double z\nproperty ushort red\n"
        head += "property ushort green\nproperty ushort blue\nproperty float s\nproperty float t\n"
        head += "element face 3\nproperty list uchar int vertex_indices\nproperty uchar flags\n"
        head = (head + "end_header\n").encode()
        if order:
            body = b"".join(struct.pack(order + "ffdHHHff", *p, 9, 99, 999, *p[:2]) for p in square)
            for face in faces:
                body += struct.pack(f"{order}B{len(face)}iB", len(face), *face, 7)
        else:
            rows = [[*p, 9, 99, 999, *p[:2]] for p in square] + [[len(f), *f, 7] for f in faces]
            body = "".join(" ".join(map(str, row)) + "\n" for row in rows).encode()
        found.append({"m.ply": head + body, "t.png": png(np.full((2, 2, 3), 7))})
    return found


def gaussian_plys() -> list[dict[str, bytes]]:
    found = []
    names = ["x", "y", "z", "f_dc_0", "f_dc_1", "f_dc_2", "f_rest_0", "opacity", "scale_0"]
    names += ["scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    values = np.random.default_rng(0).normal(size=(3, len(names)))
    for order, kind in (("<", "binary_little_endian"), (">", "binary_big_endian")):
        head = f"ply\nformat {kind} 1.0\nelement camera 1\nproperty double fov\nelement vertex 3\n"
        head += "".join(f"property float {name}\n" for name in names) + "end_header\n"
        content = head.encode() + np.float64(40).astype(order + "f8").tobytes()
        found.append({"m.ply": content + values.astype(order + "f4").tobytes()})
    return found


def splats() -> list[dict[str, bytes]]:
    rows = np.random.default_rng(0)
    body = b"".join(
        rows.normal(size=6).astype("<f4").__abs__().tobytes() + rows.bytes(8) for _ in range(4)
    )
    return [{"m.splat": body}]


def safetensors_files() -> list[dict[str, bytes]]:
    from safetensors.numpy import save

    a = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, np.float16)}
    b = {
        "c": np.ones((2, 2), np.float32),
        "d": np.array(3, np.int64),
        "e": np.zeros((0, 4), np.float32),
    }
    index = {"metadata": {"total_size": 99}, "weight_map": {}}
    index["weight_map"] = dict.fromkeys(a, "x-1.safetensors") | dict.fromkeys(b, "x-2.safetensors")
    shards = {"x-1.safetensors": save(a), "x-2.safetensors": save(b)}
    notes = {"o3d_jax": json.dumps({"num_views": 4}), "format": "pt"}
    return [
        {"m.safetensors": save(a | b, notes)},
        {"m.index.json": json.dumps(index).encode(), **shards},
    ]


def orbits() -> list[dict[str, bytes]]:
    pose = np.eye(4)
    pose[2, 3] = 1.5
    places = [
        {"transform_matrix": pose.tolist(), "frames": [{"name": f"render_{i:04d}.png"}]}
        for i in range(3)
    ]
    frames = {f"render_{i:04d}.png": png(np.full((3, 4, 4), 60 * i)) for i in range(3)}
    maps = io.BytesIO()
    np.savez_compressed(maps, depth=np.ones((3, 3, 4), np.float32))
    plain = {"camera_angle_x": 0.8, "locations": places}
    return [
        {"meta.json": json.dumps(plain).encode(), **frames, "maps.npz": maps.getvalue()},
        {"meta.json": json.dumps({"name": "a/1", **plain}).encode(), **frames},
    ]


def ids_files() -> list[dict[str, bytes]]:
    return [{"ids.txt": b"abc1\n# those of last time\n000-002__abc2\n\n000-003__abc3/1\nabc7 \n"}]


def pictures() -> list[dict[str, bytes]]:
    pixels = np.full((13, 17, 4), 255, np.uint8)
    pixels[3:9, 4:12, :3] = np.random.default_rng(0).integers(0, 200, (6, 8, 3))
    opaque = Image.fromarray(pixels[..., :3])
    pixels[..., 3] = np.where(pixels[..., 0] < 200, 255, 20)
    deep = np.asarray(opaque.convert("L")).astype(np.uint16) * 257
    exif = Image.Exif()
    exif[0x0112] = 6  # Turned by a quarter.
    rgba = Image.fromarray(pixels)
    made = [
        ("m.png", rgba, {"dpi": (72, 72)}),
        ("m.png", opaque.convert("P"), {"transparency": 3}),
        ("m.png", Image.fromarray(deep), {}),
        ("m.jpg", opaque, {"exif": exif, "quality": 90}),
        ("m.jpg", opaque.convert("CMYK"), {"progressive": True}),
        ("m.webp", rgba, {"lossless": True}),
        ("m.webp", opaque, {"save_all": True, "append_images": [opaque.rotate(90)]}),
    ]
    found = []
    for name, image, options in made:
        file = io.BytesIO()
        image.save(file, {"png": "PNG", "jpg": "JPEG", "webp": "WebP"}[name[2:]], **options)
        found.append({name: file.getvalue()})
    mask = png(np.kron(pixels[..., 3:] > 99, np.ones((2, 2, 3), np.uint8)) * 255)
    return [*found, {"m.png": found[0]["m.png"], "mask.png": mask}]


def protocols() -> list[dict[str, bytes]]:
    from o3d_jax.evaluation.protocol import BUNDLED_PROTOCOLS

    contents = [path.read_bytes() for path in sorted(BUNDLED_PROTOCOLS.glob("*.toml"))]
    named = contents[0].replace(b'names = "all"', b'names = "names.txt"')
    lists = contents[0].replace(b'frames = "model"', b"frames = [0, 2, 5]")
    lists = lists.replace(b'orbits = "all"', b"orbits = [0, 1]").replace(
        b'names = "all"', b'names = ["a", "b"]'
    )
    names = b"abc1\n000-002__abc2\n"
    return [{"m.toml": each} for each in (*contents, lists)] + [
        {"m.toml": named, "names.txt": names}
    ]


def model_configs() -> list[dict[str, bytes]]:
    from o3d_jax.weights.checkpoint import BUNDLED

    return [{"config.json": (BUNDLED / "nano" / "config.json").read_bytes()}]


def configs() -> list[dict[str, bytes]]:
    from o3d_jax.places import CONFIGS

    return [{"m.py": path.read_bytes()} for path in sorted(CONFIGS.glob("*.py"))]
