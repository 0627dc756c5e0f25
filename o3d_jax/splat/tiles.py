"""Which Gaussians touch which tiles of the image, in depth order, in rounds of a fixed size.

An intersection is a pair of a Gaussian and a tile. All intersections of a view (at most 2^31) are
numbered in depth order; a round takes the next `capacity` of them and sorts them by tile. So shapes
are static, memory is bounded, and nothing is dropped: more intersections are more rounds.
"""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from o3d_jax.splat.project import Boxes
from o3d_jax.types import pytree


@dataclasses.dataclass(frozen=True)
class Tiling:
    """The static sizes of one view's work. The result does not depend on them."""

    height: int
    width: int
    tile: int
    """Side of a tile, px. Divides 16, so that Inria's boxes are whole tiles."""

    capacity: int
    """Intersections a round; a power of two."""

    group: int
    """Tiles that are blended side by side."""

    chunk: int = 16
    """Gaussians a tile between two looks at whether all its pixels are opaque."""

    def __post_init__(self):
        if 16 % self.tile:
            raise ValueError(f"tile {self.tile} px does not divide 16")
        if self.capacity & (self.capacity - 1):
            raise ValueError(f"capacity {self.capacity} is not a power of two")
        if (self.tiles + 1) * self.capacity > 2**32:
            raise ValueError(
                f"{self.tiles} tiles times a capacity of {self.capacity} intersections exceeds "
                "the 32 bits of a sorting key; use larger tiles or a smaller capacity"
            )

    @staticmethod
    def choose(gaussians: int, size: tuple[int, int]) -> "Tiling":
        """A tiling that is fast where splats are about as large as pixel-aligned ones."""
        height, width = size
        tile = 8 if max(size) <= 128 else 16
        tiles = math.ceil(height / tile) * math.ceil(width / tile)
        # Of 4096 and 65536 Gaussians on a surface, at 64 and 512 px: 1.2 and 3.6 tiles each.
        wanted = min(max(2 * gaussians, 4096), max(gaussians * tiles, 1))
        # Sorting words of 32 bits hold a tile and a position in the round.
        most = 31 - (2 * tiles).bit_length()
        return Tiling(
            height=height,
            width=width,
            tile=tile,
            capacity=2 ** min(math.ceil(math.log2(wanted)), 17, most),
            group=min(1024 // tile**2, tiles),  # 1024 px: the state stays in the L1 cache.
        )

    @property
    def columns(self) -> int:
        """Tiles from left to right."""
        return math.ceil(self.width / self.tile)

    @property
    def rows(self) -> int:
        """Tiles from top to bottom."""
        return math.ceil(self.height / self.tile)

    @property
    def tiles(self) -> int:
        """Tiles, filled up with empty ones to whole groups."""
        return math.ceil(self.columns * self.rows / self.group) * self.group

    @property
    def pixels(self) -> int:
        """Pixels of a tile."""
        return self.tile**2


@pytree
class Intersections:
    """Gaussians against the grid of tiles, in depth order; g counts Gaussians in that order."""

    gaussian: Int[Array, " g"]
    """Index of the Gaussian."""

    first: Int[Array, "2 g"]
    """Leftmost column and topmost row of tiles."""

    columns: Int[Array, " g"]
    """Width of the rectangle, in tiles."""

    count: Int[Array, " g"]
    """Tiles touched."""

    start: Int[Array, " g"]
    """Number of the Gaussian's first intersection."""

    total: Int[Array, ""]


@pytree
class Round:
    """`capacity` intersections, by tile and then by depth."""

    owner: Int[Array, " c"]
    """Unsorted: whose intersection it is, by depth rank."""

    slot: Int[Array, " c"]
    """Sorted: position before sorting."""

    gaussian: Int[Array, " c"]
    """Sorted: index of the Gaussian."""

    start: Int[Array, " t"]
    """The tile's first sorted intersection."""

    count: Int[Array, " t"]
    """The tile's intersections."""

    busiest: Int[Array, " t"]
    """Tiles by falling `count`: neighbours in this order have about the same work."""


def intersect(depth: Float[Array, " n"], boxes: Boxes, tiling: Tiling) -> Intersections:
    """Numbers all intersections of a view by depth (ties by index)."""
    gaussian = depth_order(depth)
    shift = tiling.tile.bit_length() - 1
    first = boxes.first >> shift
    end = (boxes.last + tiling.tile - 1) >> shift
    extent = jnp.where(boxes.last > boxes.first, end - first, 0)
    count = (extent[0] * extent[1])[gaussian]
    end = jnp.cumsum(count, dtype=jnp.int32)
    return Intersections(
        gaussian=gaussian,
        first=first[:, gaussian],
        columns=extent[0, gaussian],
        count=count,
        start=end - count,
        total=end[-1],
    )


def depth_order(depth: Float[Array, " n"]) -> Int[Array, " n"]:
    """Indices by rising depth, ties by index. Depths are positive.

    Sorting single 32-bit words is several times faster than sorting pairs, so float32 depths are
    sorted digit by digit with the position in the low bits.
    """
    if depth.dtype != jnp.float32:
        return jnp.argsort(depth, stable=True).astype(jnp.int32)
    n = depth.shape[0]
    position_bits = max((n - 1).bit_length(), 1)
    digit_bits = 32 - position_bits
    words = lax.bitcast_convert_type(depth, jnp.uint32)  # Ordered like the positive floats.
    position = jnp.arange(n, dtype=jnp.uint32)
    order = jnp.arange(n, dtype=jnp.int32)
    for shift in range(0, 31, digit_bits):
        digit = (words[order] >> shift) << position_bits
        order = order[_low_bits(lax.sort(digit | position), position_bits)]
    return order


def take_round(
    intersections: Intersections,
    begin: Int[Array, ""],
    is_open: Bool[Array, " t"],
    tiling: Tiling,
) -> Round:
    """The intersections from `begin` on, without those of tiles that are no longer open."""
    capacity, tiles = tiling.capacity, tiling.tiles
    owner = _owners(intersections, begin, capacity)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    nth = begin + slot - intersections.start[owner]
    columns = jnp.maximum(intersections.columns[owner], 1)
    column = intersections.first[0][owner] + lax.rem(nth, columns)
    row = intersections.first[1][owner] + lax.div(nth, columns)
    exists = begin + slot < intersections.total
    tile = jnp.where(exists, row * tiling.columns + column, 0)
    tile = jnp.where(exists & is_open[tile], tile, tiles)

    slot_bits = capacity.bit_length() - 1
    key = lax.sort((tile.astype(jnp.uint32) << slot_bits) | slot.astype(jnp.uint32))
    bounds = jnp.arange(tiles + 1, dtype=jnp.uint32) << slot_bits
    start = jnp.searchsorted(key, bounds).astype(jnp.int32)
    slot = _low_bits(key, slot_bits)
    count = start[1:] - start[:-1]
    return Round(
        owner=owner,
        slot=slot,
        gaussian=intersections.gaussian[owner[slot]],
        start=start[:-1],
        count=count,
        busiest=jnp.argsort(-count, stable=True).astype(jnp.int32),
    )


def sum_by_gaussian(
    rows: Float[Array, "c f"], intersections: Intersections, taken: Round, begin: Int[Array, ""]
) -> Float[Array, "n f"]:
    """Adds the rows (unsorted) of each Gaussian. In a fixed order, so that repeated runs agree."""
    capacity = rows.shape[0]
    owner = jnp.concatenate([taken.owner, jnp.full_like(taken.owner, -1)])

    def double(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Row i holds the sum of rows i .. i + reach - 1 of the same owner.
        reach, rows = carry
        later = lax.dynamic_slice_in_dim(jnp.pad(rows, ((0, capacity), (0, 0))), reach, capacity)
        same = lax.dynamic_slice_in_dim(owner, reach, capacity) == owner[:capacity]
        return reach * 2, rows + jnp.where(same[:, None], later, 0)

    longest = jnp.minimum(jnp.max(intersections.count), capacity)
    one = jnp.ones((), jnp.int32)
    rows = lax.while_loop(lambda carry: carry[0] < longest, double, (one, rows))[1]
    first = jnp.maximum(intersections.start - begin, 0)
    end = intersections.start + intersections.count - begin
    present = (first < capacity) & (end > first)
    sums = jnp.where(present[:, None], rows[jnp.minimum(first, capacity - 1)], 0)
    return jnp.zeros_like(sums).at[intersections.gaussian].set(sums, unique_indices=True)


def to_image(tiles: Float[Array, "t pixels *c"], tiling: Tiling) -> Float[Array, "h w *c"]:
    """The image that the tiles make up."""
    side, rows, columns = tiling.tile, tiling.rows, tiling.columns
    image = tiles[: rows * columns].reshape(rows, columns, side, side, *tiles.shape[2:])
    image = jnp.swapaxes(image, 1, 2).reshape(rows * side, columns * side, *tiles.shape[2:])
    return image[: tiling.height, : tiling.width]


def tile_centers(tiling: Tiling) -> Float[np.ndarray, "2 t"]:
    """x and y of the middle of every tile, px."""
    row, column = np.divmod(np.arange(tiling.tiles), tiling.columns)
    return tiling.tile * (np.stack([column, row]) + 0.5)


def pixel_offsets(tiling: Tiling) -> Float[np.ndarray, "2 p"]:
    """x and y of every pixel centre of a tile, from the middle of the tile, px."""
    row, column = np.divmod(np.arange(tiling.pixels), tiling.tile)
    return np.stack([column, row]) + 0.5 - tiling.tile / 2


def in_image(tiling: Tiling) -> Bool[np.ndarray, "t p"]:
    """Which pixels of the tiles the image has."""
    x, y = tile_centers(tiling)[:, :, None] + pixel_offsets(tiling)[:, None]
    return (x < tiling.width) & (y < tiling.height)


def _owners(intersections: Intersections, begin: Int[Array, ""], capacity: int) -> Int[Array, " c"]:
    """Depth rank of the Gaussian of each intersection from `begin` on."""
    rank = jnp.arange(intersections.count.shape[0], dtype=jnp.int32)
    first = jnp.maximum(intersections.start - begin, 0)
    present = (intersections.count > 0) & (intersections.start + intersections.count > begin)
    target = jnp.where(present, first, capacity)
    marks = jnp.zeros(capacity, jnp.int32).at[target].set(rank, mode="drop")
    return lax.cummax(marks)


def _low_bits(words: UInt[Array, " m"], bits: int) -> Int[Array, " m"]:
    return (words & jnp.uint32(2**bits - 1)).astype(jnp.int32)
