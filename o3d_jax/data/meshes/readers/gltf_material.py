"""Reads the materials and textures of glTF models: base color, alpha, emission, sidedness.

Metals are taken for matt surfaces of their base color. Normal, roughness and occlusion maps,
filters of samplers, and the extensions of materials but for unlit and specular-glossiness, are left
out. `shading.py` samples the textures.
"""

from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from o3d_jax.data.meshes.mesh import AlphaMode, Material, Texels, TextureUse, Wrap
from o3d_jax.data.meshes.readers.files import ModelFiles, decode_texture
from o3d_jax.errors import InputError

UNLIT, GLOSSY = "KHR_materials_unlit", "KHR_materials_pbrSpecularGlossiness"
STRENGTH, TRANSFORM = "KHR_materials_emissive_strength", "KHR_texture_transform"
WEBP = "EXT_texture_webp"

WRAPS = {10497: Wrap.REPEAT, 33071: Wrap.CLAMP, 33648: Wrap.MIRROR}

BufferView = Callable[[int], memoryview]
"""A function that returns the bytes of a buffer view."""


class Coordinates(NamedTuple):
    """Which of a mesh's texture coordinates a texture uses, and how they are moved before."""

    which: int = 0
    transform: tuple[tuple[float, float, float], ...] = ((1.0, 0.0, 0.0), (0.0, 1.0, 0.0))
    """The matrix that (u, v, 1) is multiplied by."""

    def apply(self, uvs: Float[np.ndarray, "v 2"]) -> Float[np.ndarray, "v 2"]:
        """Returns the coordinates at which the texture is looked up."""
        matrix = np.array(self.transform)
        return np.asarray(uvs, np.float64) @ matrix[:, :2].T + matrix[:, 2]


class MaterialCoordinates(NamedTuple):
    """Where each texture of a material is looked up."""

    color: Coordinates = Coordinates()
    glow: Coordinates | None = None
    """None if they are the color's."""


class Looks(NamedTuple):
    """All materials of a file; the last one is for parts that have none."""

    materials: list[Material]
    coordinates: list[MaterialCoordinates]
    textures: list[Texels]


class _Library:
    """Decodes each image once for each use: with its alpha, or without."""

    def __init__(self, tree: Any, view: BufferView, source: ModelFiles) -> None:
        self.tree, self.view, self.source = tree, view, source
        self.textures: list[Texels] = []
        self.places: dict[tuple[int, bool], int] = {}

    def place(self, reference: Any, opaque: bool) -> int:
        """Returns the index of a texture in `textures`."""
        texture = self.tree["textures"][reference["index"]]
        webp = texture.get("extensions", {}).get(WEBP, {})
        if (index := webp.get("source", texture.get("source"))) is None:
            raise InputError("a texture of it is of a format that is not read; export it as PNG")
        key = (index, opaque)
        if key not in self.places:
            image = self.tree["images"][index]
            if "bufferView" in image:
                data = bytes(self.view(image["bufferView"]))
            else:
                data = self.source.read_beside(image["uri"])
            texels = decode_texture(data, str(image.get("name", image.get("uri", index)))[:80])
            if opaque:
                texels[..., 3] = 255
            self.places[key] = len(self.textures)
            self.textures.append(texels)
        return self.places[key]

    def use(self, reference: Any, opaque: bool) -> TextureUse:
        """Returns a texture with its sampler."""
        texture = self.tree["textures"][reference["index"]]
        sampler = self.tree["samplers"][texture["sampler"]] if "sampler" in texture else {}
        wraps = WRAPS[sampler.get("wrapS", 10497)], WRAPS[sampler.get("wrapT", 10497)]
        return TextureUse(self.place(reference, opaque), *wraps)


def read_materials(tree: Any, view: BufferView, source: ModelFiles, used: Collection[int]) -> Looks:
    """Returns the materials of a glTF file; textures of those not in `used` are not read.

    Raises:
        InputError: a texture is missing, damaged or outside the model's folder.
    """
    library = _Library(tree, view, source)
    looks = Looks([], [], library.textures)
    for index, described in enumerate(tree.get("materials", [])):
        material, coordinates = Material(), MaterialCoordinates()
        if index in used:
            material, coordinates = _material(described, library)
        looks.materials.append(material)
        looks.coordinates.append(coordinates)
    looks.materials.append(Material())
    looks.coordinates.append(MaterialCoordinates())
    return looks


def _material(described: Any, library: _Library) -> tuple[Material, MaterialCoordinates]:
    extensions = described.get("extensions", {})
    look = described.get("pbrMetallicRoughness", {})
    factor, base = look.get("baseColorFactor", (1, 1, 1, 1)), look.get("baseColorTexture")
    if GLOSSY in extensions:
        look = extensions[GLOSSY]
        factor, base = look.get("diffuseFactor", (1, 1, 1, 1)), look.get("diffuseTexture")

    mode = AlphaMode[described.get("alphaMode", "OPAQUE")]
    emissive = described.get("emissiveTexture")
    strength = extensions.get(STRENGTH, {}).get("emissiveStrength", 1)
    r, g, b = (float(c * strength) for c in described.get("emissiveFactor", (0, 0, 0)))
    emissive = emissive if r + g + b else None

    # Where all alpha is 1, textures are decoded without it: it may hold anything then.
    material = Material(
        base=(float(factor[0]), float(factor[1]), float(factor[2]), float(factor[3])),
        emission=(r, g, b),
        color=library.use(base, mode == AlphaMode.OPAQUE) if base else TextureUse(),
        glow=library.use(emissive, True) if emissive else TextureUse(),
        mode=mode,
        cutoff=float(described.get("alphaCutoff", 0.5)),
        two_sided=bool(described.get("doubleSided", False)),
        lit=UNLIT not in extensions,
    )

    if not (base or emissive):
        return material, MaterialCoordinates()
    color, glow = _coordinates(base or emissive), _coordinates(emissive or base)
    return material, MaterialCoordinates(color, glow if glow != color else None)


def _coordinates(reference: Any) -> Coordinates:
    """Returns where a texture is looked up."""
    moved = reference.get("extensions", {}).get(TRANSFORM, {})
    (left, top), (wide, high) = moved.get("offset", (0, 0)), moved.get("scale", (1, 1))
    turn = moved.get("rotation", 0)
    c, s = float(np.cos(turn)), float(np.sin(turn))
    return Coordinates(
        int(moved.get("texCoord", reference.get("texCoord", 0))),
        ((wide * c, high * s, left), (-wide * s, high * c, top)),
    )
