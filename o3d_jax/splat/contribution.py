"""What one Gaussian does to the pixels of one tile, and back. Elementwise over pixels.

Both backends are made of these lines, so they agree on which contributions count.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float

from o3d_jax.splat.project import ALPHA_MAX, ALPHA_MIN, Splats
from o3d_jax.types import pytree

TRANSMITTANCE_MIN = 1e-4  # A pixel closes before the Gaussian that would bring it below this.

COLUMNS = 10
"""Columns of a table of splats: center (2), whitening (3), opacity, red, green, blue, depth."""


@pytree
class Contribution:
    """One Gaussian, pixel by pixel; transmittances of closed pixels are negative."""

    dx: Float[Array, "*p"]
    """Center minus pixel, px."""

    dy: Float[Array, "*p"]

    raw: Float[Array, "*p"]
    """opacity exp(-q / 2)."""

    alpha: Float[Array, "*p"]
    """0 where it does not count."""

    after: Float[Array, "*p"]
    """Transmittance behind it."""


@pytree
class BackwardState:
    """What a backward pass knows behind the Gaussians so far."""

    transmittance: Float[Array, "t p"]

    behind: Float[Array, "t p"]
    """What the loss gains from all that lies behind."""

    rows: Float[Array, "c 10"]
    """Gradient of each intersection of the last round, unsorted."""


@pytree
class Moments:
    """Sums over the pixels of a tile of the gradient of log alpha, times powers of (dx, dy)."""

    total: Float[Array, "*k"]
    x: Float[Array, "*k"]
    y: Float[Array, "*k"]
    xx: Float[Array, "*k"]
    xy: Float[Array, "*k"]
    yy: Float[Array, "*k"]


def contribution(
    row: list[Float[Array, "*#p"]],
    x: Float[Array, "*#p"],
    y: Float[Array, "*#p"],
    transmittance: Float[Array, "*p"],
) -> Contribution:
    """Returns what the Gaussian with these first six columns does to pixels at (x, y).

    `transmittance` is what reaches it; 1 before the first Gaussian. Once the next Gaussian would
    bring it below 1e-4 the pixel is closed and keeps -T.
    """
    center_x, center_y, p, r, s, opacity = row
    dx = center_x - x
    dy = center_y - y
    u = p * dx + r * dy
    v = s * dy
    raw = opacity * jnp.exp(-0.5 * (u * u + v * v))
    alpha = jnp.where(raw >= ALPHA_MIN, jnp.minimum(raw, ALPHA_MAX), 0)
    after = transmittance * (1 - alpha)
    is_open = after >= TRANSMITTANCE_MIN
    return Contribution(
        dx=dx,
        dy=dy,
        raw=raw,
        alpha=jnp.where(is_open, alpha, 0),
        after=jnp.where(is_open, after, -jnp.abs(transmittance)),
    )


def log_alpha_gradient(
    hit: Contribution, gained: Float[Array, "*p"], behind: Float[Array, "*p"]
) -> Float[Array, "*p"]:
    """Returns the gradient of the loss in log alpha: 0 where it does not count or is clamped.

    `gained` is the loss's gain by the Gaussian itself, `behind` by all that lies behind it.
    """
    gradient = gained - behind * hit.alpha / (1 - hit.alpha)
    return jnp.where((hit.alpha > 0) & (hit.raw < ALPHA_MAX), gradient, 0)


def geometry_gradients(row: list[Float[Array, "*k"]], moments: Moments) -> list[Float[Array, "*k"]]:
    """Returns the gradients in the first six columns."""
    _, _, p, r, s, opacity = row
    u = p * moments.x + r * moments.y
    return [
        -p * u,
        -r * u - s * s * moments.y,
        -(p * moments.xx + r * moments.xy),
        -(p * moments.xy + r * moments.yy),
        -s * moments.yy,
        moments.total / jnp.where(opacity > 0, opacity, 1),
    ]


def table_of(splats: Splats) -> Float[Array, "n 10"]:
    """Returns one row a Gaussian, so that a tile reads it at once."""
    rows = [splats.center, splats.whitening, splats.opacity[None], splats.color]
    return jnp.concatenate([*rows, splats.depth[None]]).T


def splats_of(table: Float[Array, "n 10"]) -> Splats:
    """Returns the splats of a table: the inverse of `table_of`."""
    columns = table.T
    return Splats(
        center=columns[:2],
        whitening=columns[2:5],
        opacity=columns[5],
        color=columns[6:9],
        depth=columns[9],
    )


def zeros(shape: tuple[int, ...], table: Float[Array, "n 10"]) -> Float[Array, "..."]:
    """Returns zeros to start a loop over `table` with.

    Under `shard_map` they must vary between devices as it does.
    """
    return jnp.broadcast_to(jnp.where(False, table[0, 0], 0), shape)
