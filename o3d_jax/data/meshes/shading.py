"""What a point of a surface looks like: its textures, its light, its shadow maps; in numba.

rasterize.py and picture.py compile these functions into theirs, and numba notices changes of a
function's own file only: a change here reaches their compiled code with a new COMPILED_IN there.
Tests compile all of it anew after any change.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float32, UInt8

from o3d_jax.data.compiled import inlined, kernel
from o3d_jax.data.meshes.mesh import AlphaMode, Wrap
from o3d_jax.data.meshes.scene import Dome, Surface, Textures

MASK, BLEND = int(AlphaMode.MASK), int(AlphaMode.BLEND)
CLAMP, MIRROR = int(Wrap.CLAMP), int(Wrap.MIRROR)

GLOSS = 0.015
"""Share of light that a surface sends back as it is, whatever its color, so that black things have
a shape. Glass and plastic reflect 0.04 (Fresnel), but textures of photographs hold some already."""
MOST_TAPS = 4
"""The most places at which a texture is looked up that is seen at a slant."""
SHADOW_OFFSET = 2.0
"""How far off the surface light is looked for, in texels of the shadow maps: a plane then never
shadows itself, since its height in a map changes by at most 1.5 tan(angle) from texel to texel."""


class Texel(NamedTuple):
    """Linear color times alpha, and alpha."""

    r: float
    g: float
    b: float
    a: float


class Patch(NamedTuple):
    """What a pixel sees of a texture: its middle, and its sides along x and y."""

    u: float
    v: float
    ux: float
    vx: float
    uy: float
    vy: float


class Spot(NamedTuple):
    """A point of a triangle: weights of its second and third corner with their slopes in
    x and y, and 1 / depth."""

    second: float
    third: float
    second_x: float
    third_x: float
    second_y: float
    third_y: float
    nearness: float


class Shaded(NamedTuple):
    """Linear color and alpha of a point, 1 / depth, and where it is."""

    r: float
    g: float
    b: float
    a: float
    nearness: float
    x: float
    y: float
    z: float


class Vector(NamedTuple):
    """A point or a direction in the world."""

    x: float
    y: float
    z: float


@kernel
@no_type_check
def wrapped(i: int, size: int, wrap: int) -> int:
    """Returns the texel that stands for texel i, which may lie outside of the texture."""
    if 0 <= i < size:
        return i
    if wrap == CLAMP:
        return 0 if i < 0 else size - 1
    if wrap == MIRROR:
        i = i % (2 * size)
        return i if i < size else 2 * size - 1 - i
    return i % size


@kernel
@no_type_check
def bilinear(x: Textures, use: np.record, level: int, u: float, v: float) -> Texel:
    """Returns a texture between the four texels around (u, v)."""
    start = x.levels[use.texture, level, 0]
    w, h = x.levels[use.texture, level, 1], x.levels[use.texture, level, 2]
    across, down = u * w - 0.5, v * h - 0.5
    left, top = int(np.floor(across)), int(np.floor(down))
    fx, fy = np.float32(across - left), np.float32(down - top)
    one = np.float32(1)

    first, second = wrapped(left, w, use.wrap_u), wrapped(left + 1, w, use.wrap_u)
    above = start + wrapped(top, h, use.wrap_v) * w
    below = start + wrapped(top + 1, h, use.wrap_v) * w

    # Weighted by alpha: the color of what cannot be seen must not bleed into what can.
    r, g, b, a = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for at, share in (
        (above + first, (one - fx) * (one - fy)),
        (above + second, fx * (one - fy)),
        (below + first, (one - fx) * fy),
        (below + second, fx * fy),
    ):
        share *= x.texels[at, 3] * np.float32(1 / 255)
        r += share * x.linear[x.texels[at, 0]]
        g += share * x.linear[x.texels[at, 1]]
        b += share * x.linear[x.texels[at, 2]]
        a += share
    return Texel(r, g, b, a)


@inlined
@no_type_check
def sample_texture(x: Textures, use: np.record, p: Patch) -> Texel:
    """Returns a texture over a patch: between two levels, at up to MOST_TAPS places along it."""
    if not (abs(p.u) < 1e6 and abs(p.v) < 1e6):  # Nonsense in the file.
        return bilinear(x, use, 0, 0.0, 0.0)

    # Squared sides of the patch in texels; along the longer one it is looked at several times.
    w, h = x.levels[use.texture, 0, 1], x.levels[use.texture, 0, 2]
    long, short = (p.ux * w) ** 2 + (p.vx * h) ** 2, (p.uy * w) ** 2 + (p.vy * h) ** 2
    du, dv = p.ux, p.vx
    if long < short:
        long, short, du, dv = short, long, p.uy, p.vy
    if not long > 1:
        return bilinear(x, use, 0, p.u, p.v)

    # The level whose texels are as long as a tap's share of the patch, and the one below.
    taps = int(min(np.ceil(np.sqrt(long / max(short, 1.0))), MOST_TAPS))
    last = x.levels.shape[1] - 1
    while x.levels[use.texture, last, 1] == 0:
        last -= 1
    level = min(max(0.5 * np.log2(long) - np.log2(taps), 0.0), float(last))
    low = int(level)

    r, g, b, a = np.float32(0), np.float32(0), np.float32(0), np.float32(0)
    for k in range(2 * taps):
        share = np.float32((level - low if k % 2 else low + 1 - level) / taps)
        if share > 0:
            along = (k // 2 + 0.5) / taps - 0.5
            tap = bilinear(x, use, low + k % 2, p.u + along * du, p.v + along * dv)
            r, g, b, a = r + share * tap.r, g + share * tap.g, b + share * tap.b, a + share * tap.a
    return Texel(r, g, b, a)


@kernel
@no_type_check
def spot(planes: Float32[np.ndarray, "t 10"], t: int, x: float, y: float) -> Spot:
    """Returns the point of a triangle that a place in the image shows; perspective-correct."""
    dx, dy = x - planes[t, 0], y - planes[t, 1]
    nearness_x, nearness_y = planes[t, 3], planes[t, 4]
    nearness = max(planes[t, 2] + nearness_x * dx + nearness_y * dy, 1e-9)
    depth = 1 / nearness
    second = (planes[t, 5] * dx + planes[t, 6] * dy) * depth
    third = (planes[t, 7] * dx + planes[t, 8] * dy) * depth
    return Spot(
        second,
        third,
        (planes[t, 5] - second * nearness_x) * depth,
        (planes[t, 7] - third * nearness_x) * depth,
        (planes[t, 6] - second * nearness_y) * depth,
        (planes[t, 8] - third * nearness_y) * depth,
        nearness,
    )


@kernel
@no_type_check
def between(values: Float32[np.ndarray, "t 3 c"], t: int, column: int, at: Spot) -> float:
    """Returns a quantity of a triangle's corners at a point."""
    first = values[t, 0, column]
    across, down = values[t, 1, column] - first, values[t, 2, column] - first
    return first + at.second * across + at.third * down


@kernel
@no_type_check
def patch(uvs: Float32[np.ndarray, "t 3 2"], t: int, at: Spot) -> Patch:
    """Returns what the pixel around a point sees of the triangle's texture."""
    u1, u2 = uvs[t, 1, 0] - uvs[t, 0, 0], uvs[t, 2, 0] - uvs[t, 0, 0]
    v1, v2 = uvs[t, 1, 1] - uvs[t, 0, 1], uvs[t, 2, 1] - uvs[t, 0, 1]
    return Patch(
        uvs[t, 0, 0] + at.second * u1 + at.third * u2,
        uvs[t, 0, 1] + at.second * v1 + at.third * v2,
        at.second_x * u1 + at.third_x * u2,
        at.second_x * v1 + at.third_x * v2,
        at.second_y * u1 + at.third_y * u2,
        at.second_y * v1 + at.third_y * v2,
    )


@kernel
@no_type_check
def opacity(x: Textures, use: np.record, level: int, u: float, v: float) -> float:
    """Returns a texture's alpha between the four texels around (u, v)."""
    if not (abs(u) < 1e6 and abs(v) < 1e6):
        return 0.0
    start = x.levels[use.texture, level, 0]
    w, h = x.levels[use.texture, level, 1], x.levels[use.texture, level, 2]
    across, down = u * w - 0.5, v * h - 0.5
    left, top = int(np.floor(across)), int(np.floor(down))
    fx, fy = across - left, down - top
    first, second = wrapped(left, w, use.wrap_u), wrapped(left + 1, w, use.wrap_u)
    above = start + wrapped(top, h, use.wrap_v) * w
    below = start + wrapped(top + 1, h, use.wrap_v) * w
    upper = (1 - fx) * x.texels[above + first, 3] + fx * x.texels[above + second, 3]
    lower = (1 - fx) * x.texels[below + first, 3] + fx * x.texels[below + second, 3]
    return ((1 - fy) * upper + fy * lower) / 255


@kernel
@no_type_check
def level_of(x: Textures, texture: int, p: Patch) -> int:
    """Returns the level whose texels are about as large as a patch."""
    w, h = x.levels[texture, 0, 1], x.levels[texture, 0, 2]
    area = abs(p.ux * p.vy - p.uy * p.vx) * w * h
    level = 0
    while area > 2 and level + 1 < x.levels.shape[1] and x.levels[texture, level + 1, 1] > 0:
        area *= 0.25
        level += 1
    return level


@inlined
@no_type_check
def light(dome: Dome, at: Vector, normal: Vector) -> float:
    """Returns what reaches a point: the floor, and every light that sees it."""
    nx, ny, nz = normal.x, normal.y, normal.z
    size = dome.maps.shape[1]
    scale = 0.5 * size / dome.reach
    off = SHADOW_OFFSET / scale
    px, py, pz = at.x + off * nx, at.y + off * ny, at.z + off * nz
    limit, half = size - 1.001, 0.5 * (size - 1)
    total = dome.floor
    axes = dome.axes
    for k in range(len(axes)):
        slant = nx * axes[k, 2, 0] + ny * axes[k, 2, 1] + nz * axes[k, 2, 2]
        if slant <= 0:
            continue

        # Where the point is in the light's shadow map, and whether the map has nothing higher.
        u = (px * axes[k, 0, 0] + py * axes[k, 0, 1] + pz * axes[k, 0, 2]) * scale + half
        v = (px * axes[k, 1, 0] + py * axes[k, 1, 1] + pz * axes[k, 1, 2]) * scale + half
        height = px * axes[k, 2, 0] + py * axes[k, 2, 1] + pz * axes[k, 2, 2]
        u, v = min(max(u, 0.0), limit), min(max(v, 0.0), limit)

        # Four texels are asked, and their answers blended: so edges of shadows are smooth.
        i, j = int(v), int(u)
        fi, fj = v - i, u - j
        above = (1 - fj) * (dome.maps[k, i, j] <= height) + fj * (dome.maps[k, i, j + 1] <= height)
        i += 1
        below = (1 - fj) * (dome.maps[k, i, j] <= height) + fj * (dome.maps[k, i, j + 1] <= height)
        total += ((1 - fi) * above + fi * below) * slant * dome.strengths[k]
    return total


@inlined
@no_type_check
def lit(s: Surface, dome: Dome, t: int, at: Spot, side: float) -> float:
    """Returns the light at a point of a triangle, on the side that is seen."""
    c, n = s.corners, s.normals
    x, y, z = between(c, t, 0, at), between(c, t, 1, at), between(c, t, 2, at)
    nx, ny, nz = between(n, t, 0, at), between(n, t, 1, at), between(n, t, 2, at)
    ax, ay, az = c[t, 1, 0] - c[t, 0, 0], c[t, 1, 1] - c[t, 0, 1], c[t, 1, 2] - c[t, 0, 2]
    bx, by, bz = c[t, 2, 0] - c[t, 0, 0], c[t, 2, 1] - c[t, 0, 1], c[t, 2, 2] - c[t, 0, 2]
    agree = nx * (ay * bz - az * by) + ny * (az * bx - ax * bz) + nz * (ax * by - ay * bx)
    length = max(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-6)
    scale = (side if agree >= 0 else -side) / length
    return light(dome, Vector(x, y, z), Vector(nx * scale, ny * scale, nz * scale))


@inlined
@no_type_check
def shade(s: Surface, dome: Dome, t: int, at: Spot, side: float) -> Shaded:
    """Returns what a triangle looks like at a point; `side` is 1 for its front, -1 for its back."""
    m = s.materials[s.material[t]]
    r = m.base[0] * between(s.colors, t, 0, at)
    g = m.base[1] * between(s.colors, t, 1, at)
    b = m.base[2] * between(s.colors, t, 2, at)
    a = m.base[3] * between(s.colors, t, 3, at) if m.mode == BLEND else 1.0

    # Texels come times their alpha; color and alpha are used apart from each other here.
    if m.color.texture >= 0:
        texel = sample_texture(s.textures, m.color, patch(s.uvs, t, at))
        share = 1 / max(texel.a, 1e-6)
        r, g, b = r * texel.r * share, g * texel.g * share, b * texel.b * share
        if m.mode == BLEND and m.opacity.texture < 0:
            a *= texel.a
    if m.mode == BLEND and m.opacity.texture >= 0:
        a *= sample_texture(s.textures, m.opacity, patch(s.opacity_uvs, t, at)).a

    if m.lit:
        matt, brightness = 1 - GLOSS, lit(s, dome, t, at, side)
        r, g, b = (r * matt + GLOSS), (g * matt + GLOSS), (b * matt + GLOSS)
        r, g, b = r * brightness, g * brightness, b * brightness

    er, eg, eb = m.emission[0], m.emission[1], m.emission[2]
    if m.glow.texture >= 0:
        texel = sample_texture(s.textures, m.glow, patch(s.glow_uvs, t, at))
        er, eg, eb = er * texel.r, eg * texel.g, eb * texel.b

    return Shaded(
        min(max(r + er, 0.0), 1.0),
        min(max(g + eg, 0.0), 1.0),
        min(max(b + eb, 0.0), 1.0),
        min(max(a, 0.0), 1.0),
        at.nearness,
        between(s.corners, t, 0, at),
        between(s.corners, t, 1, at),
        between(s.corners, t, 2, at),
    )


@kernel
@no_type_check
def cast(s: Surface, dome: Dome, k: int) -> None:
    """Draws light k's shadow map, which holds -inf; cut-outs by their alpha at each texel."""
    heights, size = dome.maps[k], dome.maps.shape[1]
    at = np.empty((3, 3), np.float64)
    scale = 0.5 * size / dome.reach
    for t in range(len(s.corners)):
        m = s.materials[s.material[t]]
        if m.mode == BLEND:
            continue

        # Corners in the light's own frame: texels across and down, and height toward the light.
        for i in range(3):
            for j in range(3):
                at[i, j] = 0.0
                for d in range(3):
                    at[i, j] += dome.axes[k, j, d] * s.corners[t, i, d]
            at[i, 0] = at[i, 0] * scale + 0.5 * size
            at[i, 1] = at[i, 1] * scale + 0.5 * size

        x1, y1, z1 = at[1, 0] - at[0, 0], at[1, 1] - at[0, 1], at[1, 2] - at[0, 2]
        x2, y2, z2 = at[2, 0] - at[0, 0], at[2, 1] - at[0, 1], at[2, 2] - at[0, 2]
        area = x1 * y2 - x2 * y1
        if abs(area) < 1e-9:
            continue

        left = max(int(np.ceil(min(at[0, 0], at[1, 0], at[2, 0]) - 0.5)), 0)
        right_end = min(int(np.floor(max(at[0, 0], at[1, 0], at[2, 0]) - 0.5)), size - 1)
        top = max(int(np.ceil(min(at[0, 1], at[1, 1], at[2, 1]) - 0.5)), 0)
        bottom = min(int(np.floor(max(at[0, 1], at[1, 1], at[2, 1]) - 0.5)), size - 1)

        # Here edges need not be exact: a texel counted twice or not at all hardly shows.
        for row in range(top, bottom + 1):
            for column in range(left, right_end + 1):
                x, y = column + 0.5 - at[0, 0], row + 0.5 - at[0, 1]
                b1, b2 = (x * y2 - x2 * y) / area, (x1 * y - x * y1) / area
                z = at[0, 2] + b1 * z1 + b2 * z2
                if b1 >= 0 and b2 >= 0 and b1 + b2 <= 1 and z > heights[row, column]:
                    if m.mode == MASK:
                        spot_at = Spot(b1, b2, 0.0, 0.0, 0.0, 0.0, 1.0)
                        alpha = m.base[3] * between(s.colors, t, 3, spot_at)
                        if m.opacity.texture >= 0:
                            p = patch(s.opacity_uvs, t, spot_at)
                            alpha *= bilinear(s.textures, m.opacity, 0, p.u, p.v).a
                        elif m.color.texture >= 0:
                            p = patch(s.uvs, t, spot_at)
                            alpha *= bilinear(s.textures, m.color, 0, p.u, p.v).a
                        if alpha < m.cutoff:
                            continue
                    heights[row, column] = z


@kernel
@no_type_check
def halve(
    source: UInt8[np.ndarray, "h w 4"],
    linear: Float32[np.ndarray, " 256"],
    display: UInt8[np.ndarray, " 4096"],
) -> UInt8[np.ndarray, "h2 w2 4"]:
    """Returns a texture at half the size: means of 2 x 2 texels in linear light, by alpha.

    Sides that are odd are rounded down, but to 1 at least.
    """
    h, w = max(source.shape[0] // 2, 1), max(source.shape[1] // 2, 1)
    half = np.empty((h, w, 4), np.uint8)
    for row in range(h):
        for column in range(w):
            r, g, b, a = 0.0, 0.0, 0.0, 1e-6
            for k in range(4):
                y = min(2 * row + k // 2, source.shape[0] - 1)
                x = min(2 * column + k % 2, source.shape[1] - 1)
                texel = source[y, x]

                # Texels that are not there still have a color: it must not be lost at alpha 0.
                share = texel[3] + 1e-3
                r += share * linear[texel[0]]
                g += share * linear[texel[1]]
                b += share * linear[texel[2]]
                a += share

            half[row, column, 0] = display[int(r / a * 4095 + 0.5)]
            half[row, column, 1] = display[int(g / a * 4095 + 0.5)]
            half[row, column, 2] = display[int(b / a * 4095 + 0.5)]
            half[row, column, 3] = int(a / 4 + 0.5)
    return half
