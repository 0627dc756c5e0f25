"""Which Gaussians touch which tiles of the image, in depth order, in rounds of a fixed size.

An intersection is a pair of a Gaussian and a tile. Gaussians are ranked by depth; a round takes the
next `capacity` intersections in that order and sorts them by tile. So shapes are static, memory is
bounded, and nothing is dropped or counted globally: more intersections are more rounds, without
end.
"""

import dataclasses
import math
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int, UInt

from o3d_jax.splat.project import Boxes
from o3d_jax.types import pytree

Backend = Literal["xla", "pallas"]

KEY_BITS = 32  # A word that holds a tile and a place in the round, to sort by, has so many.


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
    """Tiles that are blended side by side (XLA)."""

    chunk: int = 16
    """Gaussians a tile between two looks at whether all its pixels are opaque (XLA)."""

    block: int = 8192
    """Gaussians that are projected at once."""

    def __post_init__(self):
        if min(self.height, self.width) < 1:
            raise ValueError(
                f"an image of {self.height} x {self.width} px; both sides must be at least 1"
            )
        if 16 % self.tile:
            raise ValueError(f"tile {self.tile} px does not divide 16")
        if self.capacity < 1 or self.capacity & (self.capacity - 1):
            raise ValueError(f"capacity {self.capacity} is not a power of two")

    @staticmethod
    def choose(gaussians: int, size: tuple[int, int], backend: Backend = "xla") -> "Tiling":
        """Returns a tiling that is fast where splats are about as large as pixel-aligned ones."""
        height, width = (max(side, 1) for side in size)
        tile = 8 if max(size) <= 128 else 16
        tiles = math.ceil(height / tile) * math.ceil(width / tile)

        # 4096 and 65536 Gaussians on a surface touch 1.2 and 3.6 tiles each at 64 and 512 px. On a
        # GPU a second round costs more than the room for a larger first one.
        xla = backend == "xla"
        each, largest = (2, 17) if xla else (8, 20)

        # Every round passes over all tiles, so it should not be small against them.
        wanted = min(max(each * gaussians, 8 * tiles, 4096), max(gaussians * tiles, 1))
        most = max(2**largest, 8 * tiles)

        return Tiling(
            height=size[0],
            width=size[1],
            tile=tile,
            capacity=2 ** math.ceil(math.log2(min(wanted, most))),
            # 1024 px and 8192 Gaussians: their numbers stay in the L1 and L2 cache of a CPU.
            group=min(1024 // tile**2, tiles) if xla else 1,
            block=8192 if xla else max(gaussians, 1),
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
class Ranked:
    """Gaussians against the grid of tiles, by rising depth; those that touch no tile are last."""

    gaussian: Int[Array, " g"]
    """Index of the Gaussian."""

    first: Int[Array, "2 g"]
    """Leftmost column and topmost row of tiles."""

    columns: Int[Array, " g"]
    """Width of the rectangle, in tiles."""

    count: Int[Array, " g"]
    """Tiles touched."""

    visible: Int[Array, ""]
    """How many Gaussians touch any tile."""


@pytree
class Position:
    """Which intersection comes next."""

    rank: Int[Array, ""]
    """The rank of its Gaussian."""

    nth: Int[Array, ""]
    """Its place among that Gaussian's; below its `count`."""


@pytree
class Round:
    """Up to `capacity` intersections of a window of w ranks, by tile and then by depth."""

    base: Int[Array, ""]
    """First rank of the window."""

    start: Int[Array, " w"]
    """Unsorted: where the intersections of each rank of the window begin."""

    taken: Int[Array, " w"]
    """How many of them are in this round."""

    owner: Int[Array, " c"]
    """Unsorted: whose intersection it is, counted from `base`."""

    slot: Int[Array, " c"]
    """Sorted: position before sorting."""

    rank: Int[Array, " c"]
    """Sorted: rank of the Gaussian."""

    tile_start: Int[Array, " t"]
    """The tile's first sorted intersection."""

    tile_count: Int[Array, " t"]
    """The tile's intersections."""

    following: Position
    """Where the next round begins."""


def rank_by_depth(depth: Float[Array, " n"], boxes: Boxes, tiling: Tiling) -> Ranked:
    """Returns the Gaussians of a view by depth, ties by index, with their rectangles of tiles."""
    shift = tiling.tile.bit_length() - 1
    first = boxes.first >> shift
    end = (boxes.last + tiling.tile - 1) >> shift
    extent = jnp.where(boxes.last > boxes.first, end - first, 0)
    count = extent[0] * extent[1]
    gaussian = depth_order(jnp.where(count > 0, depth, jnp.inf))
    return Ranked(
        gaussian=gaussian,
        first=first[:, gaussian],
        columns=extent[0, gaussian],
        count=count[gaussian],
        visible=jnp.sum(count > 0, dtype=jnp.int32),
    )


def depth_order(depth: Float[Array, " n"]) -> Int[Array, " n"]:
    """Returns indices by rising depth, ties by index. Depths are positive.

    Sorting single 32-bit words is several times faster than sorting pairs, so float32 depths are
    sorted digit by digit with the position in the low bits.
    """
    if depth.dtype != jnp.float32:
        return jnp.argsort(depth, stable=True).astype(jnp.int32)

    # Least significant digit first, and each pass keeps the order of the one before: radix sort.
    n = depth.shape[0]
    position_bits = max((n - 1).bit_length(), 1)
    digit_bits = 32 - position_bits
    words = lax.bitcast_convert_type(depth, jnp.uint32)  # Ordered like the positive floats.
    position = jnp.arange(n, dtype=jnp.uint32)
    order = jnp.arange(n, dtype=jnp.int32)
    for shift in range(0, 31, digit_bits):
        digit = (words[order] >> shift) << position_bits
        order = order[_low_bits(lax.sort(digit | position, is_stable=False), position_bits)]
    return order


def take_round(
    ranked: Ranked, position: Position, is_open: Bool[Array, " t"], tiling: Tiling
) -> Round:
    """Returns the next intersections, without those of tiles that are no longer open."""
    capacity, tiles = tiling.capacity, tiling.tiles
    gaussians = ranked.count.shape[0]

    # All that a round can reach: every visible Gaussian of the window has an intersection.
    window = min(capacity, gaussians)
    base = jnp.minimum(position.rank, gaussians - window)
    rank = base + jnp.arange(window, dtype=jnp.int32)
    count = lax.dynamic_slice_in_dim(ranked.count, base, window)

    # Each rank's intersections begin where those of the ranks before end; earlier rounds have
    # taken some already.
    passed = jnp.where(
        rank < position.rank, count, jnp.where(rank > position.rank, 0, position.nth)
    )
    end = _running_total(count - passed, tiling)
    start = end - (count - passed)

    # The nth intersection of a Gaussian is with the nth tile of its rectangle, row by row.
    owner = _owners(start, count - passed, capacity)
    slot = jnp.arange(capacity, dtype=jnp.int32)
    nth = slot - start[owner] + passed[owner]
    columns = jnp.maximum(ranked.columns[base + owner], 1)
    column = ranked.first[0][base + owner] + lax.rem(nth, columns)
    row = ranked.first[1][base + owner] + lax.div(nth, columns)

    # Slots that hold nothing, or a tile that is closed, go to a tile beyond the last.
    exists = slot < end[-1]
    tile = jnp.where(exists, row * tiling.columns + column, 0)
    tile = jnp.where(exists & is_open[tile], tile, tiles)

    # Sorting keeps the order of slots, and so of depths, within each tile.
    slot, bound = _by_tile(tile, slot, tiling)
    last, last_nth = owner[-1], nth[-1] + 1
    finished = last_nth >= count[last]
    return Round(
        base=base,
        start=start,
        taken=jnp.clip(capacity - start, 0, count - passed),
        owner=owner,
        slot=slot,
        rank=base + owner[slot],
        tile_start=bound[:-1],
        tile_count=bound[1:] - bound[:-1],
        following=Position(
            rank=base + last + finished.astype(jnp.int32), nth=jnp.where(finished, 0, last_nth)
        ),
    )


def sum_by_rank(rows: Float[Array, "c f"], taken: Round) -> Float[Array, "w f"]:
    """Returns the sum of each rank's unsorted rows.

    They are added in a fixed order, so that repeated runs agree to the last bit.
    """
    capacity = rows.shape[0]
    owner = jnp.concatenate([taken.owner, jnp.full_like(taken.owner, -1)])

    def double(carry: tuple[Array, Array]) -> tuple[Array, Array]:
        # Row i holds the sum of rows i .. i + reach - 1 of the same owner.
        reach, rows = carry
        later = lax.dynamic_slice_in_dim(jnp.pad(rows, ((0, capacity), (0, 0))), reach, capacity)
        same = lax.dynamic_slice_in_dim(owner, reach, capacity) == owner[:capacity]
        return reach * 2, rows + jnp.where(same[:, None], later, 0)

    one = jnp.ones((), jnp.int32)
    longest = jnp.max(taken.taken)
    rows = lax.while_loop(lambda carry: carry[0] < longest, double, (one, rows))[1]
    sums = rows[jnp.minimum(taken.start, capacity - 1)]
    return jnp.where((taken.taken > 0)[:, None], sums, 0)


def to_image(tiles: Float[Array, "t pixels *c"], tiling: Tiling) -> Float[Array, "h w *c"]:
    """Returns the image that the tiles make up."""
    side, rows, columns = tiling.tile, tiling.rows, tiling.columns
    image = tiles[: rows * columns].reshape(rows, columns, side, side, *tiles.shape[2:])
    image = jnp.swapaxes(image, 1, 2).reshape(rows * side, columns * side, *tiles.shape[2:])
    return image[: tiling.height, : tiling.width]


def tile_centers(tiling: Tiling) -> Float[np.ndarray, "2 t"]:
    """Returns x and y of the middle of every tile, px."""
    row, column = np.divmod(np.arange(tiling.tiles), tiling.columns)
    return tiling.tile * (np.stack([column, row]) + 0.5)


def pixel_offsets(tiling: Tiling) -> Float[np.ndarray, "2 p"]:
    """Returns x and y of every pixel center of a tile, from the middle of the tile, px."""
    row, column = np.divmod(np.arange(tiling.pixels), tiling.tile)
    return np.stack([column, row]) + 0.5 - tiling.tile / 2


def in_image(tiling: Tiling) -> Bool[np.ndarray, "t p"]:
    """Returns which pixels of the tiles lie inside of the image."""
    x, y = tile_centers(tiling)[:, :, None] + pixel_offsets(tiling)[:, None]
    return (x < tiling.width) & (y < tiling.height)


def _running_total(count: Int[Array, " w"], tiling: Tiling) -> Int[Array, " w"]:
    """Returns the sums of the first counts: exact up to `capacity`, and beyond it above it."""
    if tiling.capacity * tiling.tiles < 2**31:
        return jnp.cumsum(count, dtype=jnp.int32)
    enough = 2**30 - 1  # The sum of two of them is an int32.
    return lax.associative_scan(lambda a, b: jnp.minimum(a + b, enough), count)


def _by_tile(
    tile: Int[Array, " c"], slot: Int[Array, " c"], tiling: Tiling
) -> tuple[Int[Array, " c"], Int[Array, " t1"]]:
    """Returns slots sorted by tile, and where each tile begins (and the last ends) among them."""
    slot_bits = (tiling.capacity - 1).bit_length()
    tiles = jnp.arange(tiling.tiles + 1)
    if tiling.tiles.bit_length() + slot_bits > KEY_BITS:
        tile, slot = lax.sort((tile, slot), num_keys=1)
        bound = jnp.searchsorted(tile, tiles.astype(tile.dtype), method="scan_unrolled")
    else:  # One word sorts several times faster than two. No two are equal.
        key = (tile.astype(jnp.uint32) << slot_bits) | slot.astype(jnp.uint32)
        key = lax.sort(key, is_stable=False)
        first = tiles.astype(jnp.uint32) << slot_bits
        bound = jnp.searchsorted(key, first, method="scan_unrolled")
        slot = _low_bits(key, slot_bits)
    return slot, bound.astype(jnp.int32)


def _owners(start: Int[Array, " w"], count: Int[Array, " w"], capacity: int) -> Int[Array, " c"]:
    """Returns whose intersection each slot holds; beyond the last one, its owner again."""
    place = jnp.arange(start.shape[0], dtype=jnp.int32)
    target = jnp.where((count > 0) & (start < capacity), start, capacity)
    return lax.cummax(jnp.zeros(capacity, jnp.int32).at[target].set(place, mode="drop"))


def _low_bits(words: UInt[Array, " m"], bits: int) -> Int[Array, " m"]:
    return (words & jnp.uint32(2**bits - 1)).astype(jnp.int32)
