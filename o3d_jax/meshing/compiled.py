"""What numba compiles for meshes: density on a grid, rays through it, and texels on a surface.

`kernel` is that of `o3d_jax.data.compiled`, which says why `no_type_check` stands in between.
"""

from typing import no_type_check

import numpy as np
from jaxtyping import Float, Float32, Int

from o3d_jax.data.compiled import kernel


@kernel
@no_type_check
def scatter_density(
    means: Float[np.ndarray, "n 3"],
    reach: Float[np.ndarray, "n 3"],
    precision: Float[np.ndarray, "n 3 3"],
    opacities: Float[np.ndarray, " n"],
    colors: Float[np.ndarray, "n 3"],
    sums: Float32[np.ndarray, "x y z 4"],
) -> None:
    """Adds each Gaussian's density, and that times its color, at the points within `reach`.

    All lengths are in steps of the grid.
    """
    for n in range(len(means)):
        low, high = np.empty(3, np.int64), np.empty(3, np.int64)
        for a in range(3):
            low[a] = max(0, int(np.ceil(means[n, a] - reach[n, a])))
            high[a] = min(sums.shape[a] - 1, int(np.floor(means[n, a] + reach[n, a])))

        # d = (x, y, z) P (x, y, z)^T, its terms moved out of the loops in which they are constant.
        p, o = precision[n], opacities[n]
        for i in range(low[0], high[0] + 1):
            x = i - means[n, 0]
            for j in range(low[1], high[1] + 1):
                y = j - means[n, 1]
                plane = p[0, 0] * x * x + 2 * p[0, 1] * x * y + p[1, 1] * y * y
                slope = 2 * (p[0, 2] * x + p[1, 2] * y)
                for k in range(low[2], high[2] + 1):
                    z = k - means[n, 2]
                    d = plane + z * (slope + p[2, 2] * z)
                    if d < 9.0:  # Within three standard deviations, as `reach` is.
                        weight = o * np.exp(-0.5 * d)
                        sums[i, j, k, 0] += weight
                        for c in range(3):
                            sums[i, j, k, 1 + c] += weight * colors[n, c]


@kernel
@no_type_check
def value_at(density: Float32[np.ndarray, "x y z"], x: float, y: float, z: float) -> float:
    """Returns the density between the grid's points, by trilinear interpolation; 0 outside."""
    i, j, k = int(np.floor(x)), int(np.floor(y)), int(np.floor(z))
    if i < 0 or j < 0 or k < 0:
        return 0.0
    if i + 1 >= density.shape[0] or j + 1 >= density.shape[1] or k + 1 >= density.shape[2]:
        return 0.0
    u, v, w = x - i, y - j, z - k
    total = 0.0
    for a in range(2):
        for b in range(2):
            share = (u if a else 1 - u) * (v if b else 1 - v)
            near, far = density[i + a, j + b, k], density[i + a, j + b, k + 1]
            total += share * ((1 - w) * near + w * far)
    return total


STEP = 0.5
"""Length of a step along a ray, in steps of the grid."""


@kernel
@no_type_check
def cast_rays(
    density: Float32[np.ndarray, "x y z"],
    origin: Float[np.ndarray, " 3"],
    rotation: Float[np.ndarray, "3 3"],
    focal: float,
    threshold: float,
    pictures: Float32[np.ndarray, "2 h w"],
) -> None:
    """Looks through the grid from `origin`, all lengths in its steps.

    Args:
        rotation: camera to world, OpenCV axes; `focal` in pixels, the middle is the picture's.
        pictures: gets the greatest density along each pixel's ray, and the depth along z where it
            first is above `threshold`, or 0.
    """
    height, width = pictures.shape[1:]
    middle = np.array([(density.shape[a] - 1) / 2 for a in range(3)])
    ball = np.sqrt((middle**2).sum())
    ahead = ((middle - origin) * rotation[:, 2]).sum()

    # Nothing is outside of the ball around the grid: rays begin and end with it.
    for row in range(height):
        for column in range(width):
            x, y = (column + 0.5 - width / 2) / focal, (row + 0.5 - height / 2) / focal
            dx = rotation[0, 0] * x + rotation[0, 1] * y + rotation[0, 2]
            dy = rotation[1, 0] * x + rotation[1, 1] * y + rotation[1, 2]
            dz = rotation[2, 0] * x + rotation[2, 1] * y + rotation[2, 2]
            most, first, before = 0.0, 0.0, 0.0
            step = STEP / np.sqrt(x * x + y * y + 1)
            depth = max(ahead - ball, step)
            while depth < ahead + ball:
                value = value_at(
                    density, origin[0] + depth * dx, origin[1] + depth * dy, origin[2] + depth * dz
                )
                if first == 0.0 and value > threshold:  # Between the last two points.
                    first = depth - step * (value - threshold) / max(value - before, 1e-12)
                most, before = max(most, value), value
                depth += step
            pictures[0, row, column], pictures[1, row, column] = most, first


@kernel
@no_type_check
def fill_texels(
    uvs: Float[np.ndarray, "k 2"],
    faces: Int[np.ndarray, "f 3"],
    values: Float[np.ndarray, "k 6"],
    texels: Float32[np.ndarray, "s s 7"],
) -> None:
    """Gives each texel whose middle is in a triangle the values there, interpolated, and a 1.

    Args:
        uvs: of each vertex, in texels from the left and from the top.
    """
    size = len(texels)

    # Barycentric coordinates are ratios of areas, each with the sign of its turn.
    for f in range(len(faces)):
        a, b, c = uvs[faces[f, 0]], uvs[faces[f, 1]], uvs[faces[f, 2]]
        area = (b[0] - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (b[1] - a[1])
        if area == 0:
            continue
        left, right = min(a[0], b[0], c[0]), max(a[0], b[0], c[0])
        top, bottom = min(a[1], b[1], c[1]), max(a[1], b[1], c[1])
        for row in range(max(0, int(top)), min(size, int(bottom) + 1)):
            for column in range(max(0, int(left)), min(size, int(right) + 1)):
                x, y = column + 0.5, row + 0.5
                second = ((x - a[0]) * (c[1] - a[1]) - (c[0] - a[0]) * (y - a[1])) / area
                third = ((b[0] - a[0]) * (y - a[1]) - (x - a[0]) * (b[1] - a[1])) / area
                first = 1 - second - third
                if min(first, second, third) < -1e-9:
                    continue
                for i in range(6):
                    texels[row, column, i] = (
                        first * values[faces[f, 0], i]
                        + second * values[faces[f, 1], i]
                        + third * values[faces[f, 2], i]
                    )
                texels[row, column, 6] = 1
