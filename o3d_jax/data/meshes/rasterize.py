"""A rasterizer of triangles in numba: which of them is in front at each of 16 samples a pixel.

Coverage is exact: corners are rounded to 1/256 pixel and edges are integers, so that triangles
sharing an edge share no sample and leave none out. picture.py makes a picture of the result.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float32, Int64

from o3d_jax.data.compiled import kernel
from o3d_jax.data.meshes.scene import (
    FARTHEST,
    GRID,
    SAMPLE_X,
    SAMPLE_Y,
    SAMPLES,
    Canvas,
    Fragments,
    MeshView,
    Surface,
)
from o3d_jax.data.meshes.shading import BLEND, MASK, between, level_of, opacity, patch, spot

COMPILED_IN = 2
"""The same as `orbits.LOOK`: by a new one numba notices changes in shading.py and scene.py."""

NEAREST = 1e-3
"""Triangles with a corner nearer to the camera's plane, in scene units, are not drawn."""
YIELD_TWO_SIDED, YIELD_ONE_SIDED = 1 - 1e-5, 1 - 0.01
"""Factors of a back's nearness, by which it yields to a front in about the same place: leaves that
are two triangles, linings, shells for a renderer that leaves out the backs of one-sided faces
as the file allows. Here these show where nothing is in front of them or close behind."""


@kernel
@no_type_check
def place_triangle(
    s: Surface, view: MeshView, canvas: Canvas, t: int, at: Int64[np.ndarray, "3 2"]
) -> bool:
    """Returns whether a triangle may be seen; if so, fills its plane and its corners `at`.

    These are in steps of the grid.
    """
    r, o, c = view.rotation, view.origin, s.corners[t]
    near = (1.0, 1.0, 1.0)
    for k in range(3):
        x, y, z = c[k, 0] - o[0], c[k, 1] - o[1], c[k, 2] - o[2]
        depth = r[2, 0] * x + r[2, 1] * y + r[2, 2] * z
        if not depth > NEAREST:
            return False
        near = (near[1], near[2], 1 / depth)
        scale = view.focal / depth
        px = (r[0, 0] * x + r[0, 1] * y + r[0, 2] * z) * scale + view.middle
        py = (r[1, 0] * x + r[1, 1] * y + r[1, 2] * z) * scale + view.middle
        if not (abs(px) < 1e5 and abs(py) < 1e5):
            return False
        at[k, 0], at[k, 1] = int(np.floor(px * GRID + 0.5)), int(np.floor(py * GRID + 0.5))

    # Rounded corners may lie on a line; the triangle then covers no sample.
    x1, y1 = (at[1, 0] - at[0, 0]) / GRID, (at[1, 1] - at[0, 1]) / GRID
    x2, y2 = (at[2, 0] - at[0, 0]) / GRID, (at[2, 1] - at[0, 1]) / GRID
    area = x1 * y2 - x2 * y1
    if area == 0:
        return False

    # y points down, so a triangle whose corners run counter-clockwise has a negative area here.
    bias = 1.0
    if area > 0:
        bias = YIELD_TWO_SIDED if s.materials[s.material[t]].two_sided else YIELD_ONE_SIDED

    # 1 / depth and weight / depth are linear in the image: two slopes each say all.
    n0, n1, n2 = near[0] * bias, near[1] * bias, near[2] * bias
    p = canvas.planes[t]
    p[0], p[1], p[2] = at[0, 0] / GRID, at[0, 1] / GRID, n0
    p[5], p[6] = n1 * y2 / area, -n1 * x2 / area
    p[7], p[8] = -n2 * y1 / area, n2 * x1 / area
    p[3] = ((n1 - n0) * y2 - (n2 - n0) * y1) / area
    p[4] = ((n2 - n0) * x1 - (n1 - n0) * x2) / area
    p[9] = -1.0 if area > 0 else 1.0

    if area < 0:  # From here on only coverage matters: the same way round for all.
        for k in range(2):
            at[1, k], at[2, k] = at[2, k], at[1, k]
    return True


@kernel
@no_type_check
def cut_out(s: Surface, canvas: Canvas, t: int, x: float, y: float) -> int:
    """Returns a bit for each sample of a pixel where a cut-out triangle is there.

    Within the pixel, alpha is taken as linear.
    """
    m = s.materials[s.material[t]]
    at = spot(canvas.planes, t, x, y)
    alpha = m.base[3] * between(s.colors, t, 3, at)
    use, uvs = m.color, s.uvs
    if m.opacity.texture >= 0:
        use, uvs = m.opacity, s.opacity_uvs
    if use.texture < 0:
        return 0xFFFF if alpha >= m.cutoff else 0

    # Alpha in the middle and a pixel beside it, across and down: its slopes.
    p = patch(uvs, t, at)
    level = level_of(s.textures, use.texture, p)
    here = opacity(s.textures, use, level, p.u, p.v)
    across = opacity(s.textures, use, level, p.u + p.ux, p.v + p.vx)
    down = opacity(s.textures, use, level, p.u + p.uy, p.v + p.vy)

    bits = 0
    for k in range(SAMPLES):
        dx, dy = SAMPLE_X[k] / GRID, SAMPLE_Y[k] / GRID
        if alpha * (here + (across - here) * dx + (down - here) * dy) >= m.cutoff:
            bits |= 1 << k
    return bits


class Scratch(NamedTuple):
    """What is known of the triangle that is being drawn; lengths are in steps of the grid."""

    at: Int64[np.ndarray, "3 2"]
    """Its corners."""
    edges: Int64[np.ndarray, "3 4"]
    """Each edge's function at the first pixel's middle, the function's steps from pixel to pixel
    across and down, and how far it may vary within a pixel. Inside, all three are >= 0."""
    offsets: Int64[np.ndarray, "3 16"]
    """Each edge's function at the samples, less that in the pixel's middle."""
    nearer: Float32[np.ndarray, " 16"]
    """1 / depth at the samples, less that in the pixel's middle."""


class Here(NamedTuple):
    """A triangle in the middle of a pixel."""

    z: float
    """1 / depth."""
    edges: tuple[int, int, int]
    """The edges' functions."""
    whole: bool
    """Whether it covers the whole pixel, so that no edge matters."""


class Box(NamedTuple):
    """Pixels that a triangle may cover, both ends included."""

    left: int
    right: int
    top: int
    bottom: int


@kernel
@no_type_check
def begin(canvas: Canvas, t: int, scratch: Scratch) -> Box:
    """Prepares a triangle that `place_triangle` has placed; returns the pixels it may cover."""
    at, edges = scratch.at, scratch.edges
    h, w = canvas.first.shape
    left = max((min(at[0, 0], at[1, 0], at[2, 0]) - FARTHEST) // GRID, 0)
    right = min((max(at[0, 0], at[1, 0], at[2, 0]) + FARTHEST) // GRID, w - 1)
    top = max((min(at[0, 1], at[1, 1], at[2, 1]) - FARTHEST) // GRID, 0)
    bottom = min((max(at[0, 1], at[1, 1], at[2, 1]) + FARTHEST) // GRID, h - 1)

    # An edge's function is a cross product, so linear: its value once, then its steps.
    for k in range(3):
        ax, ay, bx, by = at[k, 0], at[k, 1], at[(k + 1) % 3, 0], at[(k + 1) % 3, 1]
        dx, dy = bx - ax, by - ay

        # A sample on an edge belongs to one of its two triangles: they run along it opposite ways.
        own = dy < 0 or (dy == 0 and dx > 0)
        x, y = left * GRID + GRID // 2, top * GRID + GRID // 2
        edges[k, 0] = dx * (y - ay) - dy * (x - ax) - (0 if own else 1)
        edges[k, 1], edges[k, 2] = -dy * GRID, dx * GRID
        edges[k, 3] = FARTHEST * (abs(dx) + abs(dy))
        for i in range(SAMPLES):
            scratch.offsets[k, i] = dx * SAMPLE_Y[i] - dy * SAMPLE_X[i]

    for i in range(SAMPLES):
        rise = canvas.planes[t, 3] * SAMPLE_X[i] + canvas.planes[t, 4] * SAMPLE_Y[i]
        scratch.nearer[i] = rise / GRID
    return Box(left, right, top, bottom)


@kernel
@no_type_check
def shown(canvas: Canvas, scratch: Scratch, row: int, column: int, here: Here) -> int:
    """Returns a bit for each sample of a pixel that a triangle covers, before what is there."""
    bits, edges = 0, here.edges
    for i in range(SAMPLES):
        inside = (edges[0] + scratch.offsets[0, i]) | (edges[1] + scratch.offsets[1, i])
        inside |= edges[2] + scratch.offsets[2, i]
        front = here.z + scratch.nearer[i] > canvas.nearness[row, column, i]
        bits |= ((here.whole or inside >= 0) and front) << i
    return bits


@kernel
@no_type_check
def keep(
    canvas: Canvas, fragments: Fragments, count: int, pixel: tuple[int, int], seen: tuple[int, int]
) -> int:
    """Adds a fragment, if there is something of it and room; returns how many there are.

    `seen` is a triangle and the bits of the samples that it covers.
    """
    (row, column), (t, bits) = pixel, seen
    if not bits:
        return count
    if count < len(fragments.owner):
        fragments.follower[count] = canvas.first[row, column]
        fragments.owner[count], fragments.covered[count] = t, bits
        canvas.first[row, column] = count
    return count + 1


@kernel
@no_type_check
def cover(
    s: Surface, canvas: Canvas, fragments: Fragments, count: int, t: int, scratch: Scratch
) -> int:
    """Draws a triangle that `place_triangle` has placed; returns the number of fragments so far.

    Opaque ones take the samples that they are the nearest at; transparent ones leave a fragment,
    and must come last.
    """
    box, edges, mode = begin(canvas, t, scratch), scratch.edges, s.materials[s.material[t]].mode
    px, py, pz = canvas.planes[t, 0], canvas.planes[t, 1], canvas.planes[t, 2]
    zx, zy = canvas.planes[t, 3], canvas.planes[t, 4]
    s0, s1, s2 = edges[0, 3], edges[1, 3], edges[2, 3]

    # The edges' functions go along: one step down for a row, one across for a pixel.
    for row in range(box.top, box.bottom + 1):
        e0, e1, e2 = edges[0, 0], edges[1, 0], edges[2, 0]
        for k in range(3):
            edges[k, 0] += edges[k, 2]
        for column in range(box.left, box.right + 1):
            if e0 >= -s0 and e1 >= -s1 and e2 >= -s2:
                x, y = column + 0.5, row + 0.5
                z = np.float32(pz + zx * (x - px) + zy * (y - py))
                whole = e0 >= s0 and e1 >= s1 and e2 >= s2
                bits = shown(canvas, scratch, row, column, Here(z, (e0, e1, e2), whole))
                if bits and mode == MASK:
                    bits &= cut_out(s, canvas, t, x, y)

                if mode == BLEND:
                    count = keep(canvas, fragments, count, (row, column), (t, bits))
                elif bits:
                    for i in range(SAMPLES):
                        if bits >> i & 1:
                            canvas.nearness[row, column, i] = z + scratch.nearer[i]
                            canvas.owner[row, column, i] = t + 1
            e0, e1, e2 = e0 + edges[0, 1], e1 + edges[1, 1], e2 + edges[2, 1]
    return count


@kernel
@no_type_check
def scatter(s: Surface, view: MeshView, canvas: Canvas, fragments: Fragments) -> int:
    """Draws all triangles; returns how many fragments there are, be there room for them or not."""
    scratch = Scratch(
        np.empty((3, 2), np.int64),
        np.empty((3, 4), np.int64),
        np.empty((3, SAMPLES), np.int64),
        np.empty(SAMPLES, np.float32),
    )

    transparent = 0
    for t in range(len(s.corners)):
        if s.materials[s.material[t]].mode == BLEND:
            transparent += 1
        elif place_triangle(s, view, canvas, t, scratch.at):
            cover(s, canvas, fragments, 0, t, scratch)

    # What is transparent comes last, when it is known what hides it.
    count = 0
    if transparent:
        for t in range(len(s.corners)):
            if s.materials[s.material[t]].mode == BLEND and place_triangle(
                s, view, canvas, t, scratch.at
            ):
                count = cover(s, canvas, fragments, count, t, scratch)
    return count
