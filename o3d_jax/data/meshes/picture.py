"""From what shows at each sample to a picture: color once a surface a pixel; in numba.

Every triangle that shows in a pixel is shaded once there, in the middle of the samples showing
it; transparent ones are laid over the others sample by sample.
"""

from typing import NamedTuple, no_type_check

import numpy as np
from jaxtyping import Float32

from o3d_jax.data.compiled import inlined, kernel
from o3d_jax.data.meshes.scene import (
    GRID,
    SAMPLE_X,
    SAMPLE_Y,
    SAMPLES,
    Canvas,
    Fragments,
    MeshView,
    Picture,
    Scene,
)
from o3d_jax.data.meshes.shading import Shaded, Texel, shade, spot

COMPILED_IN = 2
"""The same as `orbits.LOOK`: by a new one numba notices changes in shading.py and scene.py."""


class Place(NamedTuple):
    """A place in the image, in pixels, and how many samples it stands for."""

    x: float
    y: float
    count: int


@kernel
@no_type_check
def middle(bits: int, row: int, column: int) -> Place:
    """Returns the middle of some samples of a pixel."""
    x, y, n = 0, 0, 0
    for i in range(SAMPLES):
        if bits >> i & 1:
            x, y, n = x + SAMPLE_X[i], y + SAMPLE_Y[i], n + 1
    return Place(column + 0.5 + x / (n * GRID), row + 0.5 + y / (n * GRID), n)


@inlined
@no_type_check
def look(scene: Scene, canvas: Canvas, t: int, x: float, y: float) -> Shaded:
    """Returns what a triangle looks like at a place in the image."""
    at = spot(canvas.planes, t, x, y)
    return shade(scene.surface, scene.dome, t, at, canvas.planes[t, 9])


@kernel
@no_type_check
def behind(
    scene: Scene,
    canvas: Canvas,
    row: int,
    column: int,
    samples: Float32[np.ndarray, "16 4"],
) -> Shaded:
    """Fills the samples of a pixel with what is opaque there; returns what shows most of all."""
    owner = canvas.owner[row, column]
    done, most, best = 0, 0, Shaded(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    for i in range(SAMPLES):
        if done >> i & 1:
            continue

        # All samples of one triangle are shaded together, in their middle.
        bits = 0
        for j in range(i, SAMPLES):
            if owner[j] == owner[i]:
                bits |= 1 << j
        done |= bits
        if owner[i] == 0:
            for j in range(i, SAMPLES):
                if bits >> j & 1:
                    samples[j] = 0
            continue

        where = middle(bits, row, column)
        shaded = look(scene, canvas, owner[i] - 1, where.x, where.y)
        for j in range(i, SAMPLES):
            if bits >> j & 1:
                samples[j, 0], samples[j, 1], samples[j, 2] = shaded.r, shaded.g, shaded.b
                samples[j, 3] = 1
        if where.count > most:
            most, best = where.count, shaded
    return best


@kernel
@no_type_check
def in_front(
    scene: Scene,
    canvas: Canvas,
    fragments: Fragments,
    row: int,
    column: int,
    samples: Float32[np.ndarray, "16 4"],
) -> Shaded:
    """Lays a pixel's fragments over its samples, the farthest first; returns the nearest."""
    best = Shaded(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
    while True:
        # They are in no order, and few: the farthest that is left is looked for anew each time.
        farthest, least, f = -1, np.inf, canvas.first[row, column]
        while f >= 0:
            if fragments.covered[f]:
                where = middle(fragments.covered[f], row, column)
                nearness = spot(canvas.planes, fragments.owner[f], where.x, where.y).nearness
                # In the same place, what comes first in the file is drawn first.
                if nearness < least or (nearness == least and f < farthest):
                    farthest, least = f, nearness
            f = fragments.follower[f]
        if farthest < 0:
            canvas.first[row, column] = -1
            return best

        bits = fragments.covered[farthest]
        where = middle(bits, row, column)
        best = look(scene, canvas, fragments.owner[farthest], where.x, where.y)
        for i in range(SAMPLES):
            if bits >> i & 1:
                rest = 1 - best.a
                samples[i, 0] = best.r * best.a + rest * samples[i, 0]
                samples[i, 1] = best.g * best.a + rest * samples[i, 1]
                samples[i, 2] = best.b * best.a + rest * samples[i, 2]
                samples[i, 3] = best.a + rest * samples[i, 3]
        fragments.covered[farthest] = 0


@inlined
@no_type_check
def paint(
    view: MeshView,
    picture: Picture,
    row: int,
    column: int,
    sums: Texel,
    best: Shaded,
) -> None:
    """Fills a pixel, from the sums over its samples and from what shows most."""
    display, scale = view.display, 4095 / sums.a
    picture.rgba[row, column, 0] = display[int(min(sums.r * scale + 0.5, 4095.0))]
    picture.rgba[row, column, 1] = display[int(min(sums.g * scale + 0.5, 4095.0))]
    picture.rgba[row, column, 2] = display[int(min(sums.b * scale + 0.5, 4095.0))]
    picture.rgba[row, column, 3] = int(sums.a * (255 / SAMPLES) + 0.5)

    where = (best.x, best.y, best.z)
    depth = 0.0  # Not 1 / nearness, since backs have yielded a little.
    for k in range(3):
        picture.position[row, column, k] = where[k]
        depth += view.rotation[2, k] * (where[k] - view.origin[k])
    picture.depth[row, column] = depth


@kernel
@no_type_check
def fill_picture(
    scene: Scene, view: MeshView, canvas: Canvas, fragments: Fragments, picture: Picture
) -> None:
    """Shades what shows, fills the picture (which is empty), and empties the canvas."""
    h, w = canvas.first.shape
    samples = np.empty((SAMPLES, 4), np.float32)
    for row in range(h):
        for column in range(w):
            owner, alike = canvas.owner[row, column, 0], True
            for i in range(SAMPLES):
                alike &= canvas.owner[row, column, i] == owner
            transparent = canvas.first[row, column] >= 0
            if alike and owner == 0 and not transparent:
                continue

            # Most pixels show one opaque triangle; the others are put together sample by sample.
            if alike and not transparent:
                best = look(scene, canvas, owner - 1, column + 0.5, row + 0.5)
                r, g, b, a = SAMPLES * best.r, SAMPLES * best.g, SAMPLES * best.b, 1.0 * SAMPLES
            else:
                best = behind(scene, canvas, row, column, samples)
                if transparent:
                    nearest = in_front(scene, canvas, fragments, row, column, samples)
                    best = nearest if best.nearness == 0 else best
                r, g, b, a = 0.0, 0.0, 0.0, 0.0
                for i in range(SAMPLES):
                    r, g, b = r + samples[i, 0], g + samples[i, 1], b + samples[i, 2]
                    a += samples[i, 3]

            if a * (255 / SAMPLES) >= 0.5:  # Else alpha is 0, and what it is of does not show.
                paint(view, picture, row, column, Texel(r, g, b, a), best)
            for i in range(SAMPLES):
                canvas.owner[row, column, i] = 0
                canvas.nearness[row, column, i] = 0
