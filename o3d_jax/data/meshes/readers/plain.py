"""Reads Wavefront OBJ and PLY models, through trimesh.

Their colours are taken for sRGB, as they are in files of scanners and in most tools; both sides of
every face are drawn, since neither format says which one is meant.
"""

import io
import logging
from typing import Any

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image
from trimesh.exchange.obj import load_obj
from trimesh.exchange.ply import load_ply
from trimesh.resolvers import Resolver

from o3d_jax.data.meshes.mesh import AlphaMode, Material, MeshPart, ModelContent, Texels
from o3d_jax.data.meshes.readers.files import ModelFiles, decode_texture
from o3d_jax.data.meshes.scene import LINEAR
from o3d_jax.errors import InputError

logging.getLogger("trimesh").setLevel(logging.CRITICAL)  # What it warns of, we raise or allow.

# What trimesh raises on files that are not as their format says.
_FAULTS = (LookupError, TypeError, ValueError, AttributeError, OverflowError, EOFError)


class _Beside(Resolver):
    """Gives trimesh the files beside the model, and remembers what trimesh passes over in silence:
    what is missing, and images that are damaged.
    """

    def __init__(self, source: ModelFiles) -> None:
        self.source = source
        self.textures: dict[str, Texels] = {}
        self.fault: InputError | None = None

    def get(self, name: str) -> bytes:
        name = name.strip()
        try:
            data = self.source.read_beside(name.strip('"'))
            if not name.lower().strip('"').endswith(".mtl"):
                self.textures[name] = decode_texture(data, name)
        except InputError as error:
            self.fault = self.fault or error
            raise
        return data

    def keys(self) -> Any:
        return self.textures.keys()

    def write(self, name: str, data: Any) -> None:
        raise NotImplementedError

    def namespaced(self, namespace: str) -> "_Beside":
        return self


def read_obj_mesh(source: ModelFiles) -> ModelContent:
    """A Wavefront OBJ model with its materials: diffuse colour or map, opacity or opacity map.

    Raises:
        InputError: damaged, or its materials or a texture are missing or outside its folder.
    """
    return _read(source, load_obj)


def read_ply_mesh(source: ModelFiles) -> ModelContent:
    """A PLY model, with the colours of its vertices or faces, or a texture.

    Raises:
        InputError: damaged, or a texture is missing or outside its folder.
    """
    return _read(source, load_ply)


def _read(source: ModelFiles, load: Any) -> ModelContent:
    beside = _Beside(source)
    data = source.read()
    try:
        loaded = load(io.BytesIO(data), resolver=beside)
        pieces = list(loaded["geometry"].values()) if "geometry" in loaded else [loaded]
        if beside.fault:
            raise beside.fault
        model = ModelContent([], [], [])
        for piece in pieces:
            if piece.get("faces") is not None and len(piece["faces"]):
                _add(model, piece, beside)
    except InputError:
        raise
    except _FAULTS as error:
        raise InputError(f"it is damaged: {type(error).__name__} {error}") from error
    return model


def _add(model: ModelContent, piece: Any, beside: _Beside) -> None:
    """Adds one of trimesh's meshes to a model."""
    positions, faces = np.asarray(piece["vertices"], np.float64), np.asarray(piece["faces"])
    uvs, normals = getattr(piece.get("visual"), "uv", None), piece.get("vertex_normals")
    colors, by_face = piece.get("vertex_colors"), piece.get("face_colors")
    if len(faces) and (faces.min() < 0 or faces.max() >= len(positions)):
        raise InputError("a triangle of it has a corner that is not there; export it anew")
    fans = [faces[:, [0, k, k + 1]] for k in range(1, faces.shape[1] - 1)]  # Of its polygons.
    if by_face is not None and colors is None:
        if len(by_face) != len(faces):
            raise InputError("it has colours by face and faces of many kinds; triangulate it")
        positions = positions[np.concatenate(fans)].reshape(-1, 3)
        colors = np.repeat(np.tile(by_face, (len(fans), 1)), 3, axis=0)
        fans, uvs, normals = [np.arange(len(positions)).reshape(-1, 3)], None, None
    if uvs is not None:
        uvs = np.stack([uvs[:, 0], 1 - uvs[:, 1]], axis=-1)  # trimesh counts from the bottom.
    model.parts.append(
        MeshPart(
            positions=positions,
            faces=np.concatenate(fans),
            material=len(model.materials),
            normals=None if normals is None else np.asarray(normals, np.float64),
            uvs=uvs,
            colors=None if colors is None else _linear(np.asarray(colors)),
        )
    )
    model.materials.append(_material(piece.get("visual"), beside, model.textures))


def _linear(colors: Shaped[np.ndarray, "v c"]) -> Float[np.ndarray, "v 4"]:
    """Of sRGB bytes or fractions."""
    if colors.dtype.kind == "f":
        colors = np.round(255 * np.clip(np.nan_to_num(colors), 0, 1))
    levels = colors.astype(np.int64).clip(0, 255)
    out = np.ones((len(levels), 4))
    out[:, :3] = LINEAR[levels[:, :3]]
    out[:, 3:] = levels[:, 3:4] / 255 if levels.shape[1] == 4 else 1
    return out


def _material(visual: Any, beside: _Beside, textures: list[Texels]) -> Material:
    material = getattr(visual, "material", None)
    if material is None:
        return Material(two_sided=True)
    image, options = getattr(material, "image", None), getattr(material, "kwargs", {})
    opacity = float(options["d"][-1]) if "d" in options else 1.0
    if "d" not in options and "tr" in options:
        opacity = 1 - float(options["tr"][-1])
    red, green, blue = (1.0, 1.0, 1.0)
    texture, mode = -1, AlphaMode.BLEND if opacity < 1 else AlphaMode.OPAQUE
    # Where a file names no texture that is there, trimesh makes up an image.
    named = "" if image is None else image.info.get("file_path", next(iter(beside.textures), ""))
    name = str(named)
    if name in beside.textures:
        texels = beside.textures[name].copy()
        holes = " ".join(options.get("map_d", []))
        texels[..., 3] = _holes(holes, name, texels, beside) if holes else 255
        if holes and mode == AlphaMode.OPAQUE:
            mode = AlphaMode.MASK
        texture = len(textures)
        textures.append(texels)
    elif "kd" in options:
        red, green, blue = (float(LINEAR[c]) for c in material.diffuse[:3])
    return Material((red, green, blue, opacity), texture=texture, mode=mode, two_sided=True)


def _holes(name: str, texture: str, texels: Texels, beside: _Beside) -> Shaped[np.ndarray, "h w"]:
    """The opacity map as alpha: its own alpha, if it is the texture itself; else its grey."""
    if name == texture:
        return texels[..., 3]
    beside.get(name)
    grey = Image.fromarray(beside.textures[name]).convert("L")
    return np.asarray(grey.resize((texels.shape[1], texels.shape[0])))
