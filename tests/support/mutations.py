"""Damages files as disks, networks, other programs and bad people do; the same ones for a seed."""

import functools
import json
import re
import struct
import zlib

import numpy as np

EXTREMES = (0, 1, 2, 3, 127, 128, 255, 256, 65535, 65536, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
EXTREMES += (2**32, 2**53, 2**63 - 1, 2**63, 2**64 - 1, -1, -2, -(2**31), -(2**63))
WORDS = ("nan", "inf", "-inf", "1e308", "1e-320", "-0", "", "x", "1.5", "9" * 30, "9" * 5000)
MOST_BYTES = 2**19
DEEP = 3000
"""Levels of nesting; Python's own parsers give up at about 1000."""


def mutant(rng: np.random.Generator, name: str, valid: bytes, others: list[bytes]) -> bytes:
    """A file of a name after one to three mutations; `others` are files to splice parts of."""
    for _ in range(rng.choice([1, 1, 1, 2, 2, 3])):
        kinds = [_cut, _flip, _overwrite, _extreme, _swap, _drop, _repeat]
        if others:
            kinds.append(functools.partial(_splice, others=others))
        if name.endswith((".obj", ".mtl", ".txt", ".ply", ".toml", ".py")):
            kinds += 2 * [_number, _lines]
        if name.endswith((".toml", ".py")):
            kinds.append(_nest)
        if name.endswith((".json", ".gltf")):
            kinds += [_number, _nest, *8 * [_in_tree]]
        if name.endswith((".glb", ".safetensors")):
            kinds += 8 * [functools.partial(_in_header, name=name)]
        if name.endswith(".png"):
            kinds += 6 * [_in_chunk]
        valid = kinds[rng.integers(len(kinds))](rng, valid)[:MOST_BYTES]
    return valid


def _place(rng, data, room=0):
    return int(rng.integers(max(len(data) - room, 0) + 1))


def _cut(rng, data):
    return data[: _place(rng, data)]


def _drop(rng, data):
    start = _place(rng, data)
    return data[:start] + data[start + int(rng.integers(1, 40)) :]


def _repeat(rng, data):
    start = _place(rng, data)
    return data[:start] + data[start : start + int(rng.integers(1, 200))] * 2 + data[start:]


def _swap(rng, data):
    a, b, size = _place(rng, data, 4), _place(rng, data, 4), int(rng.choice([1, 4, 8]))
    out = bytearray(data)
    out[a : a + size], out[b : b + size] = data[b : b + size], data[a : a + size]
    return bytes(out)


def _flip(rng, data):
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 9)) if data else 0):
        out[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
    return bytes(out)


def _overwrite(rng, data):
    start, size = _place(rng, data), int(rng.integers(1, 12))
    return data[:start] + rng.bytes(size) + data[start + size :]


def _extreme(rng, data):
    """A length, count or offset that is not what it was."""
    code = str(rng.choice(["<I", ">I", "<H", ">H", "<Q", "B"]))
    size = struct.calcsize(code)
    start = _place(rng, data, size)
    value = EXTREMES[rng.integers(len(EXTREMES))] % 256**size
    return data[:start] + struct.pack(code, value) + data[start + size :]


def _splice(rng, data, others):
    other = others[rng.integers(len(others))]
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _word(rng):
    return str(rng.choice([*WORDS, *map(str, EXTREMES)]))


def _number(rng, data):
    """Another number where a text has one; or two of them change places."""
    found = list(re.finditer(rb"-?\d+(\.\d+)?", data[:20000]))
    if not found:
        return data
    spot = found[rng.integers(len(found))]
    new = _word(rng).encode()
    if rng.random() < 0.3:
        new = found[rng.integers(len(found))].group()
    return data[: spot.start()] + new + data[spot.end() :]


def _lines(rng, data):
    lines = data.split(b"\n")
    a, b = rng.integers(len(lines), size=2)
    kind = rng.integers(5)
    if kind == 0:
        lines[a], lines[b] = lines[b], lines[a]
    elif kind == 1:
        lines.insert(a, lines[b])
    elif kind == 2:
        del lines[a]
    elif kind == 3:
        lines[a] += b" \\" if rng.random() < 0.5 else b" " + lines[b]
    else:
        lines[a] = lines[a] * int(rng.choice([2, 50, 3000]))
    return b"\n".join(lines)


def _nest(rng, data):
    start = _place(rng, data)
    before = str(rng.choice(["[", '{"a":', '[{"uri":'])).encode() * DEEP
    return data[:start] + before + data[start:]


def _in_header(rng, data, name):
    """Mutates the JSON of a container, and counts its length anew; else no reader sees the rest."""
    start = 20 if name.endswith(".glb") else 8
    if len(data) < start:
        return data
    length = (
        struct.unpack_from("<I", data, 12)[0] if start == 20 else int.from_bytes(data[:8], "little")
    )
    kinds = [_number, _nest, *4 * [_in_tree]]
    text = kinds[rng.integers(len(kinds))](rng, data[start : start + length])
    rest = data[start + length :]
    if start == 8:
        return len(text).to_bytes(8, "little") + text + rest
    total = start + len(text) + len(rest)
    return b"glTF" + struct.pack("<IIII", 2, total, len(text), 0x4E4F534A) + text + rest


def _in_chunk(rng, data):
    """Mutates a chunk of a PNG, and sums it up anew; else no decoder looks at it."""
    chunks, start = [], 8
    while start + 12 <= len(data):
        size = int.from_bytes(data[start : start + 4], "big")
        chunks.append((data[start + 4 : start + 8], data[start + 8 : start + 8 + size]))
        start += size + 12
    if not chunks:
        return data
    number = rng.integers(len(chunks))
    kind, content = chunks[number]
    mutations = [_flip, _overwrite, _extreme, _extreme, _cut, _repeat, _deflated]
    chunks[number] = kind, mutations[rng.integers(len(mutations))](rng, content)
    if rng.random() < 0.2:  # In another order, or twice.
        chunks.insert(rng.integers(len(chunks) + 1), chunks[rng.integers(len(chunks))])
    out = data[:8]
    for kind, content in chunks:
        out += struct.pack(">I", len(content)) + kind + content
        out += struct.pack(">I", zlib.crc32(kind + content))
    return out


def _deflated(rng, data):
    """Other pixels, which unpack."""
    return zlib.compress(rng.bytes(int(rng.integers(0, 400))))


def _in_tree(rng, data):
    """Changes one place of a JSON tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return data
    places = list(_places(tree))
    if not places:
        return data
    parent, key = places[rng.integers(len(places))]
    kind = rng.integers(6)
    if kind == 0:
        del parent[key]
    elif kind == 1:
        other, name = places[rng.integers(len(places))]
        parent[key] = json.loads(json.dumps(other[name]))
    elif kind == 2 and isinstance(parent, list):
        parent += parent * int(rng.choice([1, 20]))
    elif isinstance(parent[key], int | float) and kind < 5:
        parent[key] = EXTREMES[rng.integers(len(EXTREMES))] if kind == 3 else float(_any_float(rng))
    else:
        values = [None, True, "", "x", "\ud800", "../x", [], {}, [[]], [1, 2], 10**400, 0.5, -1, 7]
        parent[key] = values[rng.integers(len(values))]
    return json.dumps(tree).encode()


def _any_float(rng):
    return rng.choice([np.nan, np.inf, -np.inf, 1e308, 1e-320, -0.0, 0.5, 3.0])


def _places(tree):
    """All pairs of a container and a key of it."""
    items = (
        tree.items()
        if isinstance(tree, dict)
        else enumerate(tree)
        if isinstance(tree, list)
        else ()
    )
    for key, value in list(items):
        yield tree, key
        yield from _places(value)
