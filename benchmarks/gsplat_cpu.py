"""gsplat's own PyTorch implementation (`gsplat.cuda._torch_impl`, 1.5.3), made to run on a CPU.

As shipped it does not: the search for the pairs of a Gaussian and a pixel is a CUDA kernel, the
products along rays come from nerfacc (CUDA as well), and the intersections with tiles are listed by
a Python loop that would take minutes. `install` puts torch code with the same results in these
three places. Each is made as light as it can be, and the seconds of the search are counted apart,
so that a comparison is with gsplat's arithmetic rather than with what is written here.
"""

import math
import sys
import time
import types
from typing import NamedTuple

import gsplat.cuda._torch_impl as implementation
import gsplat.cuda._wrapper as wrapper
import torch
from jaxtyping import Float, Int
from torch import Tensor

ALPHA_MIN = 1 / 255  # Fainter pairs do not count (gsplat's ALPHA_THRESHOLD).
TRANSMITTANCE_MIN = 1e-4  # A pixel ends before the Gaussian that would leave no more than this.
ALPHA_MAX = 0.999  # gsplat's clamp
TILE = 16  # px


class Fields(NamedTuple):
    """Gaussians; all that gradients are taken of, in the order of gsplat's arguments."""

    means: Float[Tensor, "n 3"]
    quats: Float[Tensor, "n 4"]
    scales: Float[Tensor, "n 3"]
    opacities: Float[Tensor, " n"]
    colors: Float[Tensor, "n 3"]


class TorchScene(NamedTuple):
    """A scene as gsplat takes it, on one device."""

    fields: Fields
    viewmats: Float[Tensor, "v 4 4"]
    """World to camera, OpenCV axes."""

    Ks: Float[Tensor, "v 3 3"]
    """In px."""

    backgrounds: Float[Tensor, "v 3"]
    size: tuple[int, int]
    """(height, width), px."""

    near: float
    """Gaussians nearer than this are not drawn, scene units."""


class Pictures(NamedTuple):
    """Depth is the sum of weight times z, with no background."""

    color_and_depth: Float[Tensor, "v h w 4"]
    alpha: Float[Tensor, "v h w 1"]


class SearchClock:
    """Processor seconds spent in `find_pairs` so far."""

    seconds = 0.0


class _ExclusiveProduct(torch.autograd.Function):
    """T of each pair: the product of 1 - alpha over the pairs before it on the same ray."""

    @staticmethod
    def forward(ctx, alphas, rays):
        first, count = _runs(rays)
        logs = alphas.double().neg_().log1p_()
        before = torch.cumsum(logs, 0).sub_(logs)
        before.sub_(torch.repeat_interleave(before[first], count))
        product = before.exp_().to(alphas.dtype)
        ctx.save_for_backward(alphas, product, first, count)
        return product

    @staticmethod
    def backward(ctx, *cotangents):
        alphas, product, first, count = ctx.saved_tensors
        sums = torch.cumsum(cotangents[0] * product, 0, dtype=torch.float64)
        behind = sums.sub_(torch.repeat_interleave(sums[first + count - 1], count))
        return behind.to(alphas.dtype).div_(1 - alphas), None


def _runs(rays: Int[Tensor, " m"]) -> tuple[Int[Tensor, " r"], Int[Tensor, " r"]]:
    """Where each run of equal numbers starts, and its length."""
    count = torch.unique_consecutive(rays, return_counts=True)[1]
    return torch.cumsum(count, 0) - count, count


def render_weight_from_alpha(
    alphas: Float[Tensor, " m"], ray_indices: Int[Tensor, " m"], n_rays: int
) -> tuple[Float[Tensor, " m"], Float[Tensor, " m"]]:
    """Weight and transmittance of each pair, as nerfacc's function of this name."""
    del n_rays
    transmittance: Tensor = _ExclusiveProduct.apply(alphas, ray_indices)  # type: ignore[assignment]
    return transmittance * alphas, transmittance


def accumulate_along_rays(
    weights: Float[Tensor, " m"],
    values: Float[Tensor, "m c"] | None,
    ray_indices: Int[Tensor, " m"],
    n_rays: int,
) -> Float[Tensor, "rays c"]:
    """Sums of weight times value, of the weights alone without values; as nerfacc's."""
    terms = weights[:, None] if values is None else weights[:, None] * values
    sums = torch.zeros(n_rays, terms.shape[1], dtype=terms.dtype)
    return sums.index_add(0, ray_indices, terms)


@torch.no_grad()
def find_pairs(
    range_start: int,
    range_end: int,
    transmittances: Float[Tensor, "v h w"],
    means2d: Float[Tensor, "v n 2"],
    conics: Float[Tensor, "v n 3"],
    opacities: Float[Tensor, "v n"],
    image_width: int,
    image_height: int,
    tile_size: int,
    isect_offsets: Int[Tensor, "v rows columns"],
    flatten_ids: Int[Tensor, " i"],
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Gaussian, pixel and image of each pair that counts, by pixel and then by depth.

    Stands in for `rasterize_to_indices_in_range`; the range counts batches of a tile's area.
    """
    started = time.process_time()
    views, rows, columns = isect_offsets.shape
    opacity = opacities.reshape(-1, 1)
    # Center, conic, opacity, and the sigma up to which alpha counts.
    table = torch.cat(
        [
            means2d.reshape(-1, 2),
            conics.reshape(-1, 3),
            opacity,
            torch.log(opacity / ALPHA_MIN),
        ],
        dim=1,
    )
    bounds = [*isect_offsets.flatten().tolist(), len(flatten_ids)]
    area = tile_size**2
    gaussians, pixels, images = ([torch.zeros(0, dtype=torch.long)] for _ in range(3))
    for tile, (begin, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        low, high = min(begin + range_start * area, end), min(begin + range_end * area, end)
        if low == high:
            continue
        view, row, column = tile // (rows * columns), tile // columns % rows, tile % columns
        ids = flatten_ids[low:high].long()
        y = torch.arange(row * tile_size, min((row + 1) * tile_size, image_height))
        x = torch.arange(column * tile_size, min((column + 1) * tile_size, image_width))
        start = transmittances[view, y[0] : y[-1] + 1, x[0] : x[-1] + 1].flatten()
        pixel, nth = _tile_pairs(x + 0.5, y + 0.5, table[ids], start)
        gaussians.append(ids[nth] - view * means2d.shape[-2])
        pixels.append((y[:, None] * image_width + x).flatten()[pixel])
        images.append(torch.full_like(pixel, view))
    found = torch.cat(gaussians), torch.cat(pixels), torch.cat(images)
    SearchClock.seconds += time.process_time() - started
    return found


def _tile_pairs(
    x: Float[Tensor, " w"],
    y: Float[Tensor, " h"],
    rows: Float[Tensor, "n 7"],
    transmittance: Float[Tensor, " hw"],
) -> tuple[Int[Tensor, " m"], Int[Tensor, " m"]]:
    """Pixel and row of the pairs of one tile that count, before their pixel is opaque."""
    sigma = _sigma(x, y, rows[:, :2], rows[:, 2:5])
    pixel, nth = torch.nonzero(sigma <= rows[:, 6], as_tuple=True)
    alpha = (rows[nth, 5] * torch.exp(-sigma[pixel, nth])).clamp_max(ALPHA_MAX)
    first, length = _runs(pixel)
    logs = torch.log1p(-alpha.double())
    sums = torch.cumsum(logs, 0)
    start = transmittance.log()[pixel[first]] - (sums - logs)[first]
    counts = sums + torch.repeat_interleave(start, length) > math.log(TRANSMITTANCE_MIN)
    return pixel[counts], nth[counts]


def _sigma(
    x: Float[Tensor, " w"],
    y: Float[Tensor, " h"],
    center: Float[Tensor, "n 2"],
    conic: Float[Tensor, "n 3"],
) -> Float[Tensor, "hw n"]:
    """Half the squared distance in standard deviations, at every pixel of a tile.

    A quadratic form of the pixel from the tile's first one, as one matrix product.
    """
    dx, dy = (center - torch.stack([x[0], y[0]])).T
    a, b, c = conic.T
    at_x, at_y = x - x[0], y - y[0]
    px = at_x.repeat(len(y))
    py = at_y.repeat_interleave(len(x))
    monomials = torch.stack([torch.ones_like(px), px, py, px * px, px * py, py * py], dim=1)
    constant = 0.5 * (a * dx * dx + c * dy * dy) + b * dx * dy
    forms = torch.stack([constant, -a * dx - b * dy, -c * dy - b * dx, 0.5 * a, b, 0.5 * c])
    return monomials @ forms


@torch.no_grad()
def list_intersections(
    means2d: Float[Tensor, "v n 2"],
    radii: Int[Tensor, "v n 2"],
    depths: Float[Tensor, "v n"],
    columns: int,
    rows: int,
) -> tuple[Int[Tensor, " i"], Int[Tensor, " i"]]:
    """Sorting keys (image, tile, depth) and Gaussians of all intersections, in their order.

    Stands in for the loop of `_isect_tiles`; the same keys.
    """
    count = depths.shape[-1]
    grid = torch.tensor([columns, rows])
    at, reach = means2d.reshape(-1, 2) / TILE, radii.reshape(-1, 2) / TILE
    first = torch.floor(at - reach).long().clamp(min=torch.zeros(2).long(), max=grid)
    last = torch.ceil(at + reach).long().clamp(min=torch.zeros(2).long(), max=grid)
    extent = (last - first) * (reach > 0).all(dim=1, keepdim=True)
    tiles = extent.prod(dim=1)
    owner = torch.repeat_interleave(tiles)
    nth = torch.arange(len(owner)) - (torch.cumsum(tiles, 0) - tiles)[owner]
    width = extent[owner, 0]
    tile = (first[owner, 1] + nth // width) * columns + first[owner, 0] + nth % width
    place = (owner // count << (columns * rows).bit_length()) | tile
    depth = depths.reshape(-1)[owner].contiguous().view(torch.int32)  # Ordered like the floats.
    keys, order = torch.sort(place << 32 | depth, stable=True)
    return keys, owner[order].int()


def install() -> None:
    """Puts the stand-ins where gsplat looks for nerfacc and for its kernel; one thread."""
    nerfacc = types.ModuleType("nerfacc")
    nerfacc.render_weight_from_alpha = render_weight_from_alpha  # type: ignore[attr-defined]
    nerfacc.accumulate_along_rays = accumulate_along_rays  # type: ignore[attr-defined]
    sys.modules["nerfacc"] = nerfacc
    wrapper.rasterize_to_indices_in_range = find_pairs
    torch.set_num_threads(1)


def rasterize(scene: TorchScene) -> Pictures:
    """What gsplat's CUDA `rasterization(render_mode="RGB+D")` draws, in plain torch."""
    fields, (height, width) = scene.fields, scene.size
    covariances, _ = implementation._quat_scale_to_covar_preci(
        fields.quats, fields.scales, compute_preci=False
    )
    assert covariances is not None
    radii, means2d, depths, conics, _ = implementation._fully_fused_projection(
        fields.means, covariances, scene.viewmats, scene.Ks, width, height, near_plane=scene.near
    )
    views, count = depths.shape
    columns, rows = math.ceil(width / TILE), math.ceil(height / TILE)
    keys, owners = list_intersections(means2d.detach(), radii, depths.detach(), columns, rows)
    drawn, alpha = implementation._rasterize_to_pixels(
        means2d,
        conics,
        torch.cat([fields.colors.expand(views, count, 3), depths[..., None]], dim=-1),
        fields.opacities.expand(views, count),
        width,
        height,
        TILE,
        implementation._isect_offset_encode(keys, views, columns, rows),
        owners,
        backgrounds=torch.cat([scene.backgrounds, torch.zeros(views, 1)], dim=-1),
    )
    return Pictures(color_and_depth=drawn, alpha=alpha)
