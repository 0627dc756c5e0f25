"""Sphere tracing of toy objects, compiled: images with exact depth and positions.

All distances are at most the true one outside, so that marching by them never steps through a
surface. A cone around a tile of pixels marches first, then one around each pixel, then single rays:
each starts where the one before could no longer prove the space empty.

All compiled functions are here, because numba notices changes of a function's own file only.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Float

from o3d_jax.data.compiled import kernel
from o3d_jax.data.toys.shapes import Eye, Image, Kind, Pattern, Solid, Vec

BOX, ELLIPSOID, PILLOW = int(Kind.BOX), int(Kind.ELLIPSOID), int(Kind.PILLOW)
ROUND_CONE, TORUS, EXTRUSION = int(Kind.ROUND_CONE), int(Kind.TORUS), int(Kind.EXTRUSION)
STRIPES, WEDGES, CHECKS = int(Pattern.STRIPES), int(Pattern.WEDGES), int(Pattern.CHECKS)
FADE, SPLIT, DOTS = int(Pattern.FADE), int(Pattern.SPLIT), int(Pattern.DOTS)

TILE_SIZE = 8
"""Pixels along a side of the tile that marches as one cone."""
EXACT, VISIBLE = 1e-5, 3e-4
"""Distances, in scene units, that count as hits for depth and for color."""
FEW, MANY = 4, 16
"""Rays through a pixel inside or outside of the object, and on its edge; FEW of them give color."""
CREASE_DEPTH = 0.06
"""How far off the surface, in scene units, its surroundings are probed for shade."""


@kernel
@no_type_check
def polygon_distance(
    profile: Float[np.ndarray, "k 2"], points: int, closed: bool, x: float, y: float
) -> float:
    """Returns the signed distance to a polygon; open ones are closed by their axis x = 0."""
    nearest = 1e30
    inside = False
    first = 0 if closed else 1
    for i in range(first, points):
        # The nearest point of this edge, at a share t of its length.
        j = points - 1 if i == 0 else i - 1
        ax, ay = profile[j, 0], profile[j, 1]
        ex, ey = profile[i, 0] - ax, profile[i, 1] - ay
        wx, wy = x - ax, y - ay
        t = (wx * ex + wy * ey) / (ex * ex + ey * ey)
        t = min(max(t, 0.0), 1.0)
        dx, dy = wx - t * ex, wy - t * ey
        nearest = min(nearest, dx * dx + dy * dy)

        # Does a ray toward +x cross this edge?
        if (ay > y) != (ay + ey > y) and wx < wy / ey * ex:
            inside = not inside
    return -np.sqrt(nearest) if inside else np.sqrt(nearest)


@kernel
@no_type_check
def round_cone_distance(bottom: float, top: float, half: float, radius: float, y: float) -> float:
    """Returns the signed distance to the hull of two balls on the axis, at y = -half and half."""
    length = 2 * half
    y = y + half
    slope = (bottom - top) / length
    cosine = np.sqrt(max(1 - slope * slope, 0.0))
    along = y * cosine - radius * slope  # Height along the slanted side.
    if along < 0:
        return np.sqrt(radius * radius + y * y) - bottom
    if along > cosine * length:
        return np.sqrt(radius * radius + (y - length) ** 2) - top
    return radius * cosine + y * slope - bottom


@kernel
@no_type_check
def convex_distance(exponent: int, size: Float[np.ndarray, " 3"], p: Vec) -> float:
    """Returns a bound below the distance to {|x/a|^n + |y/b|^n + |z/c|^n <= 1}, n being 2 or 4.

    f = (the norm - 1) is convex, hence f / |grad f| never exceeds the distance outside.
    """
    u, v, w = p.x / size[0], p.y / size[1], p.z / size[2]
    if exponent == 2:
        norm = np.sqrt(u * u + v * v + w * w)
        gx, gy, gz = u / size[0], v / size[1], w / size[2]
    else:
        norm = np.sqrt(np.sqrt(u**4 + v**4 + w**4))
        gx, gy, gz = u**3 / size[0], v**3 / size[1], w**3 / size[2]
    gradient = np.sqrt(gx * gx + gy * gy + gz * gz) / max(norm, 1e-9) ** (exponent - 1)
    # In the middle the gradient vanishes; any negative number will do there.
    return (norm - 1) / max(gradient, 1e-9) if norm > 0.1 else -0.5 * min(size[0], size[1], size[2])


@kernel
@no_type_check
def box_distance(size: Float[np.ndarray, " 3"], p: Vec) -> float:
    """Returns the signed distance to a box around the origin with half sides `size`."""
    dx, dy, dz = abs(p.x) - size[0], abs(p.y) - size[1], abs(p.z) - size[2]
    ox, oy, oz = max(dx, 0.0), max(dy, 0.0), max(dz, 0.0)
    return np.sqrt(ox * ox + oy * oy + oz * oz) + min(max(dx, dy, dz), 0.0)


@kernel
@no_type_check
def primitive_distance(part: np.record, p: Vec) -> float:
    """Returns the signed distance to a part from a point in its own frame, without its rounding."""
    kind, size = part.kind, part.size
    if kind == BOX:
        return box_distance(size, p)
    if kind == ELLIPSOID:
        return convex_distance(2, size, p)
    if kind == PILLOW:
        return convex_distance(4, size, p)
    if kind == EXTRUSION:
        flat = polygon_distance(part.profile, part.points, True, p.x, p.y)
        thick = abs(p.z) - size[0]
        a, b = max(flat, 0.0), max(thick, 0.0)
        return np.sqrt(a * a + b * b) + min(max(flat, thick), 0.0)

    # All others are solids of revolution around y.
    radius = np.sqrt(p.x * p.x + p.z * p.z)
    if kind == ROUND_CONE:
        return round_cone_distance(size[0], size[1], size[2], radius, p.y)
    if kind == TORUS:
        return np.sqrt((radius - size[0]) ** 2 + p.y * p.y) - size[1]
    return polygon_distance(part.profile, part.points, False, radius, p.y)


@kernel
@no_type_check
def nearest_copy(part: np.record, p: Vec) -> Vec:
    """Returns the point, moved by a part's symmetries so that its first copy is the nearest one."""
    x = abs(p.x) if part.mirror_x else p.x
    z = abs(p.z) if part.mirror_z else p.z
    if part.copies > 1:
        sector = 2 * np.pi / part.copies
        start = np.arctan2(part.center[0], part.center[2])
        angle = np.arctan2(x, z) - start
        angle += start - sector * np.round(angle / sector)
        radius = np.sqrt(x * x + z * z)
        x, z = radius * np.sin(angle), radius * np.cos(angle)
    return Vec(x, p.y, z)


@kernel
@no_type_check
def to_part(part: np.record, p: Vec) -> Vec:
    """Returns the point in the frame of the nearest copy of a part."""
    q = nearest_copy(part, p)
    center, axes = part.center, part.axes
    x, y, z = q.x - center[0], q.y - center[1], q.z - center[2]
    return Vec(
        axes[0, 0] * x + axes[0, 1] * y + axes[0, 2] * z,
        axes[1, 0] * x + axes[1, 1] * y + axes[1, 2] * z,
        axes[2, 0] * x + axes[2, 1] * y + axes[2, 2] * z,
    )


@kernel
@no_type_check
def beyond(part: np.record, p: Vec, limit: float) -> bool:
    """Returns whether a part is surely at least `limit` away, by its ball or ring of balls."""
    center = part.center
    if part.copies > 1:
        ring = np.sqrt(center[0] ** 2 + center[2] ** 2)
        side = np.sqrt(p.x * p.x + p.z * p.z) - ring
        square = side * side + (p.y - center[1]) ** 2
    else:
        x = abs(p.x) if part.mirror_x else p.x
        z = abs(p.z) if part.mirror_z else p.z
        square = (x - center[0]) ** 2 + (p.y - center[1]) ** 2 + (z - center[2]) ** 2
    limit += part.reach
    return limit <= 0 or square >= limit * limit


@kernel
@no_type_check
def part_distance(part: np.record, p: Vec) -> float:
    """Returns the signed distance to the nearest copy of a part."""
    return primitive_distance(part, to_part(part, p)) - part.rounding


@kernel
@no_type_check
def joined(a: float, b: float, width: float) -> float:
    """Returns the distance to a union, its joint filled quadratically where |a - b| < width."""
    overlap = width - abs(a - b)
    if overlap <= 0:
        return min(a, b)
    return min(a, b) - 0.25 * overlap * overlap / width


@kernel
@no_type_check
def from_origin(solid: Solid, p: Vec) -> Vec:
    """Returns a point of the scene, seen from the parts' common origin."""
    return Vec(p.x - solid.origin[0], p.y - solid.origin[1], p.z - solid.origin[2])


@kernel
@no_type_check
def distance(solid: Solid, p: Vec) -> float:
    """Returns the signed distance to the whole object from a point of the scene."""
    p = from_origin(solid, p)
    d = 1e9
    for i in range(len(solid.parts)):
        part = solid.parts[i]
        # A part this far changes nothing, smooth joint included.
        if not beyond(part, p, d + part.blend):
            d = joined(d, part_distance(part, p), part.blend)
    return d


@kernel
@no_type_check
def second_share(part: np.record, p: Vec) -> float:
    """Returns the share in [0, 1] of the second color at a point in the part's frame."""
    pattern, rate, phase = part.pattern, part.rate, part.phase
    if pattern == STRIPES:
        return np.floor(2 * (p.y * rate + phase)) % 2
    if pattern == WEDGES:
        return np.floor(np.arctan2(p.x, p.z) / np.pi * rate + 0.5) % 2
    if pattern == CHECKS:
        cells = np.floor(p.x * rate + 0.5) + np.floor(p.y * rate + 0.5) + np.floor(p.z * rate + 0.5)
        return cells % 2
    if pattern == FADE:
        return min(max(p.y * rate + 0.5, 0.0), 1.0)
    if pattern == SPLIT:
        return 1.0 if p.y > phase else 0.0

    # Every second row is moved by half a spot; lengths are in units of a row's height.
    if pattern == DOTS:
        row = np.floor(p.y * rate)
        around = np.arctan2(p.x, p.z) / (2 * np.pi) * phase + 0.5 * (row % 2) + 0.5
        across = (around - np.floor(around) - 0.5) / phase * 2 * np.pi
        across *= np.sqrt(p.x * p.x + p.z * p.z) * rate
        along = p.y * rate - row - 0.5
        return 1.0 if across * across + along * along < 0.09 else 0.0
    return 0.0


@kernel
@no_type_check
def color(solid: Solid, p: Vec) -> Vec:
    """Returns the RGB of the surface near point p; smooth joints mix their parts' colors."""
    p = from_origin(solid, p)
    d = 1e9
    r, g, b = 0.0, 0.0, 0.0
    for i in range(len(solid.parts)):
        part = solid.parts[i]
        width = part.blend
        if beyond(part, p, d + width):
            continue

        # In a joint of this width the nearer part gives way to the other little by little.
        e = part_distance(part, p)
        weight = 1.0 if e < d else 0.0
        if width > 0:
            weight = min(max(0.5 + 0.5 * (d - e) / width, 0.0), 1.0)

        if weight > 0:
            share = second_share(part, to_part(part, p))
            first, second = part.first, part.second
            r += weight * (first[0] + share * (second[0] - first[0]) - r)
            g += weight * (first[1] + share * (second[1] - first[1]) - g)
            b += weight * (first[2] + share * (second[2] - first[2]) - b)
        d = joined(d, e, width)
    return Vec(r, g, b)


@kernel
@no_type_check
def ray(eye: Eye, u: float, v: float) -> Vec:
    """Returns the unit world direction through (u, v) of the image plane, both in [0, 1]."""
    x, y = (u - 0.5) / eye.focal, (v - 0.5) / eye.focal
    scale = 1 / np.sqrt(x * x + y * y + 1)
    r = eye.rotation
    return Vec(
        (r[0, 0] * x + r[0, 1] * y + r[0, 2]) * scale,
        (r[1, 0] * x + r[1, 1] * y + r[1, 2]) * scale,
        (r[2, 0] * x + r[2, 1] * y + r[2, 2]) * scale,
    )


@kernel
@no_type_check
def at(eye: Eye, d: Vec, t: float) -> Vec:
    """Returns the point a length t along a ray."""
    return Vec(eye.origin[0] + t * d.x, eye.origin[1] + t * d.y, eye.origin[2] + t * d.z)


@kernel
@no_type_check
def march_cone(solid: Solid, eye: Eye, d: Vec, chord: float, t: float, end: float) -> float:
    """Returns how far all unit rays within `chord` of d go from t and hit nothing, `end` at most.

    Ray i at length s is within s chord + (s - t) of the axis at t, hence free while that is at most
    the distance there.
    """
    while t < end:
        ahead = (t + distance(solid, at(eye, d, t))) / (1 + chord)
        if ahead < t + 0.5 * chord * t:
            return max(t, ahead)
        t = ahead
    return end


@kernel
@no_type_check
def march_ray(solid: Solid, eye: Eye, d: Vec, t: float, end: float, hit: float) -> float:
    """Returns the length along the ray to the surface, or -1 if it misses."""
    before = step = 1e9
    for _ in range(256):
        gap = distance(solid, at(eye, d, t))
        if gap < hit:
            return t
        # Close to the surface it is nearly a plane: the secant meets it at once.
        slanted = gap < VISIBLE and gap < before
        step = gap * (min(step / (before - gap), 4.0) if slanted else 1.0)
        before = gap
        t += step
        if t >= end:
            return -1.0
    return t  # It creeps along the surface: close enough.


@kernel
@no_type_check
def shade_toy(solid: Solid, p: Vec) -> Vec:
    """Returns the RGB of a lit surface point: one fixed light, sky, and darkened creases."""
    e = 1e-3  # Normal: differences of the distance at a tetrahedron's corners.
    a = distance(solid, Vec(p.x + e, p.y - e, p.z - e))
    b = distance(solid, Vec(p.x - e, p.y - e, p.z + e))
    c = distance(solid, Vec(p.x - e, p.y + e, p.z - e))
    d = distance(solid, Vec(p.x + e, p.y + e, p.z + e))
    nx, ny, nz = a - b - c + d, c + d - a - b, b + d - a - c
    scale = 1 / max(np.sqrt(nx * nx + ny * ny + nz * nz), 1e-12)
    nx, ny, nz = nx * scale, ny * scale, nz * scale

    # In a crease, a point off the surface is nearer to another wall than to where it came from.
    probe = Vec(p.x + CREASE_DEPTH * nx, p.y + CREASE_DEPTH * ny, p.z + CREASE_DEPTH * nz)
    near = distance(solid, probe) / CREASE_DEPTH
    crease = 0.65 + 0.35 * min(max(near, 0.0), 1.0)

    lambert = max(0.48 * nx + 0.72 * ny + 0.5 * nz, 0.0)
    light = crease * (0.64 + 0.12 * ny) + 0.42 * lambert * (0.5 + 0.5 * crease)
    base = color(solid, p)
    return Vec(base.x * light, base.y * light, base.z * light)


@kernel
@no_type_check
def draw_pixel(solid: Solid, eye: Eye, image: Image, row: int, column: int, start: float) -> None:
    """Fills one pixel; `start` is a length that its rays can go freely."""
    h, w = image.depth.shape[:2]
    center = ray(eye, (column + 0.5) / w, (row + 0.5) / h)
    end = np.sqrt(eye.origin[0] ** 2 + eye.origin[1] ** 2 + eye.origin[2] ** 2) + eye.ball
    chord = 0.71 / (w * eye.focal)  # Half the diagonal; off the axis the angle only shrinks.
    start = march_cone(solid, eye, center, chord, start, end)
    if start >= end:
        return

    # Depth and position are those of the pixel's center, to the last bit that matters.
    t = march_ray(solid, eye, center, start, end, EXACT)
    if t > 0:
        p, r = at(eye, center, t), eye.rotation
        image.depth[row, column, 0] = t * (
            center.x * r[0, 2] + center.y * r[1, 2] + center.z * r[2, 2]
        )
        image.position[row, column, 0] = p.x
        image.position[row, column, 1] = p.y
        image.position[row, column, 2] = p.z

    # Color needs few rays, coverage many, but on edges only.
    red, green, blue, hits, rays, k = 0.0, 0.0, 0.0, 0, FEW, 0
    while k < rays:
        # The R2 sequence: its first points fill the pixel evenly, however many there are.
        u = (column + (0.5 + 0.7548776662466927 * k) % 1) / w
        v = (row + (0.5 + 0.5698402909980532 * k) % 1) / h
        d = ray(eye, u, v)
        s = t if k == 0 else march_ray(solid, eye, d, start, end, VISIBLE)
        if s > 0:
            hits += 1
            if hits <= FEW:
                sample = shade_toy(solid, at(eye, d, s))
                red, green, blue = red + sample.x, green + sample.y, blue + sample.z
        k += 1
        if k == FEW and 0 < hits < FEW:
            rays = MANY

    if hits > 0:
        scale = 1 / min(hits, FEW)
        image.rgba[row, column, 0] = int(min(red * scale, 1.0) * 255 + 0.5)
        image.rgba[row, column, 1] = int(min(green * scale, 1.0) * 255 + 0.5)
        image.rgba[row, column, 2] = int(min(blue * scale, 1.0) * 255 + 0.5)
        image.rgba[row, column, 3] = int(255 * hits / rays + 0.5)


@kernel
@no_type_check
def draw_toy(solid: Solid, eye: Eye, image: Image) -> None:
    """Fills an image that is all zero: straight alpha, z-depth at pixel centers, 0 where empty."""
    h, w = image.depth.shape[:2]
    away = np.sqrt(eye.origin[0] ** 2 + eye.origin[1] ** 2 + eye.origin[2] ** 2)
    end, chord = away + eye.ball, 0.71 * TILE_SIZE / (w * eye.focal)
    for top in range(0, h, TILE_SIZE):
        for left in range(0, w, TILE_SIZE):
            axis = ray(eye, (left + 0.5 * TILE_SIZE) / w, (top + 0.5 * TILE_SIZE) / h)
            start = march_cone(solid, eye, axis, chord, away - eye.ball, end)
            if start >= end:
                continue
            for row in range(top, min(top + TILE_SIZE, h)):
                for column in range(left, min(left + TILE_SIZE, w)):
                    draw_pixel(solid, eye, image, row, column, start)
