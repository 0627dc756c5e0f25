"""Small glTF files for tests, written byte by byte."""

import io
import json
import struct

import numpy as np
from PIL import Image

CODES = {"int8": 5120, "uint8": 5121, "int16": 5122, "uint16": 5123, "uint32": 5125}
CODES["float32"] = 5126
SHAPES = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4", 16: "MAT4"}


def png(pixels):
    stream = io.BytesIO()
    Image.fromarray(np.asarray(pixels, np.uint8)).save(stream, format="PNG")
    return stream.getvalue()


class Gltf:
    """Collects arrays and the tree around them."""

    def __init__(self):
        self.data = b""
        self.tree = {
            "asset": {"version": "2.0"},
            "bufferViews": [],
            "accessors": [],
            "materials": [],
            "meshes": [],
            "nodes": [],
            "scenes": [{"nodes": []}],
            "buffers": [{}],
        }

    def view(self, data, **more):
        self.data += b"\0" * (-len(self.data) % 4)
        place = {"buffer": 0, "byteOffset": len(self.data), "byteLength": len(data), **more}
        self.data += data
        self.tree["bufferViews"].append(place)
        return len(self.tree["bufferViews"]) - 1

    def accessor(self, values, dtype="float32", **more):
        values = np.asarray(values, dtype)
        values = values.reshape(len(values), -1)
        self.tree["accessors"].append(
            {
                "bufferView": self.view(values.tobytes()),
                "componentType": CODES[dtype],
                "count": len(values),
                "type": SHAPES[values.shape[1]],
                **more,
            }
        )
        return len(self.tree["accessors"]) - 1

    def texture(self, pixels):
        self.tree.setdefault("images", []).append({"bufferView": self.view(png(pixels))})
        self.tree.setdefault("textures", []).append({"source": len(self.tree["images"]) - 1})
        return {"index": len(self.tree["textures"]) - 1}

    def node(self, primitive, mesh=None, **more):
        self.tree["meshes"].append({"primitives": [primitive], **(mesh or {})})
        self.tree["nodes"].append({"mesh": len(self.tree["meshes"]) - 1, **more})
        self.tree["scenes"][0]["nodes"].append(len(self.tree["nodes"]) - 1)
        return self.tree["nodes"][-1]

    def triangle(self, positions=((0, 0, 0), (1, 0, 0), (0, 1, 0)), material=None, **attributes):
        primitive = {"attributes": {"POSITION": self.accessor(positions), **attributes}}
        if material is not None:
            self.tree["materials"].append(material)
            primitive["material"] = len(self.tree["materials"]) - 1
        return primitive

    def glb(self):
        data = self.data + b"\0" * (-len(self.data) % 4)
        self.tree["buffers"][0] = {"byteLength": len(data)}
        text = json.dumps(self.tree).encode()
        text += b" " * (-len(text) % 4)
        body = struct.pack("<II", len(text), 0x4E4F534A) + text
        body += struct.pack("<II", len(data), 0x004E4942) + data
        return b"glTF" + struct.pack("<II", 2, 12 + len(body)) + body


def cube(half=0.5, color=(0.8, 0.2, 0.1, 1.0)):
    """A closed cube of one color."""
    made = Gltf()
    corners = np.array(np.meshgrid([-half, half], [-half, half], [-half, half])).reshape(3, -1).T
    # Columns: x slowest but one; sides listed counter-clockwise seen from outside.
    sides = ((0, 1, 5, 4), (2, 6, 7, 3), (0, 4, 6, 2), (1, 3, 7, 5), (0, 2, 3, 1), (4, 5, 7, 6))
    faces = []
    for side in sides:
        a, b, c, _ = corners[list(side)]
        outward = np.cross(b - a, c - a) @ (a + c) > 0
        order = side if outward else side[::-1]
        faces += [[order[0], order[1], order[2]], [order[0], order[2], order[3]]]
    look = {"pbrMetallicRoughness": {"baseColorFactor": list(color)}}
    primitive = made.triangle(corners, look)
    primitive["indices"] = made.accessor(np.reshape(faces, -1), "uint16")
    made.node(primitive)
    return made
