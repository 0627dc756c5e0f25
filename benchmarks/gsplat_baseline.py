"""gsplat as the other side of benchmarks/splat.py: its CUDA kernels on a GPU, else its own PyTorch
implementation on one thread of the processor (gsplat_cpu.py)."""

import gsplat
import gsplat_cpu
import jax
import jax.numpy as jnp
import numpy as np
import torch
from gsplat_cpu import Fields, Pictures, TorchScene
from jaxtyping import Array, Float
from splat_scenes import within_clamp
from splat_table import Agreement, Comparison, Costs
from splat_work import Call, Inputs, Programs, growth_mb, in_turns, on_gpu, resident_mb, same_twice
from torch import Tensor

from o3d_jax.errors import InputError
from o3d_jax.splat.project import NEAR
from o3d_jax.types import Gaussians, Rendering

BEFORE = resident_mb()
"""Of this process with nothing drawn by torch; later it may hold on to memory that it freed."""

OPACITY_MAX = 0.99
"""Where results are compared: gsplat clamps alpha at 0.999, we at 0.99."""

PIXELS_OFF = 1e-3
"""Greatest share of pixels that may differ by more than `VISIBLE`. Few do: those where a pair of
Gaussian and pixel is within rounding of a threshold, and counts for one and not for the other."""

VISIBLE = 1e-3

GRADIENTS_OFF = 1e-2
"""Greatest relative L2 distance of gradients: pixels that differ leave 1e-4, a wrong term 0.1."""


class Baseline:
    """One scene at one resolution, on the device that JAX computes on."""

    def __init__(self, at: Inputs, weights: Rendering):
        """`weights`: of the sum over the pictures, of the same size, that is differentiated."""
        self.on_gpu = on_gpu()
        self.device = torch.device("cuda" if self.on_gpu else "cpu")
        if not self.on_gpu:
            gsplat_cpu.install()
        elif not torch.cuda.is_available():
            raise InputError(f"torch {torch.__version__} sees no GPU; install one built for CUDA")
        views, height, width = weights.rgb.shape[:3]
        world_to_camera = np.linalg.inv(np.asarray(at.cameras.camera_to_world, np.float64))
        pixels = np.diag([width, height, 1])
        self.scene = TorchScene(
            fields=self.fields_of(at.gaussians),
            viewmats=self._tensor(world_to_camera),
            Ks=self._tensor(pixels @ np.asarray(at.cameras.intrinsics)),
            backgrounds=self._tensor(at.background).expand(views, 3),
            size=(height, width),
            near=NEAR,
        )
        drawn = np.concatenate([weights.rgb, weights.depth], axis=-1)
        self.weights = Pictures(self._tensor(drawn), self._tensor(weights.alpha))

    @property
    def search_seconds(self) -> float:
        """Processor seconds so far in our stand-in for gsplat's search; 0 on a GPU."""
        return gsplat_cpu.SearchClock.seconds

    def measure_peak_mb(self) -> float:
        """Runs forward and backward: the memory that they need at most."""
        if not self.on_gpu:
            return growth_mb(self.gradient, BEFORE)
        torch.cuda.reset_peak_memory_stats()
        self.gradient()
        return torch.cuda.max_memory_allocated() / 1e6

    def fields_of(self, gaussians: Gaussians) -> Fields:
        return Fields(*(self._tensor(getattr(gaussians, name)) for name in Fields._fields))

    def draw(self, fields: Fields | None = None) -> Pictures:
        """Without gradients; of other Gaussians than the scene's if given."""
        scene = self.scene._replace(fields=fields or self.scene.fields)
        with torch.no_grad():
            pictures = self._rasterize(scene)
        self._wait()
        return pictures

    def gradient(self, fields: Fields | None = None) -> Fields:
        """Of the weighted sum over all pictures, with respect to the Gaussians."""
        leaves = Fields(*(x.clone().requires_grad_() for x in fields or self.scene.fields))
        drawn = self._rasterize(self.scene._replace(fields=leaves))
        # The derivative of the sum of all outputs times their weights.
        found = Fields(*torch.autograd.grad(tuple(drawn), leaves, tuple(self.weights)))
        self._wait()
        return found

    def _rasterize(self, scene: TorchScene) -> Pictures:
        if not self.on_gpu:
            return gsplat_cpu.rasterize(scene)
        height, width = scene.size
        drawn, alpha, _ = gsplat.rasterization(
            *scene.fields,
            viewmats=scene.viewmats,
            Ks=scene.Ks,
            width=width,
            height=height,
            near_plane=scene.near,
            packed=False,  # Its faster mode.
            backgrounds=scene.backgrounds,
            render_mode="RGB+D",
        )
        return Pictures(color_and_depth=drawn, alpha=alpha)

    def _wait(self) -> None:
        if self.on_gpu:
            torch.cuda.synchronize()

    def _tensor(self, x: Float[Array, "..."] | Float[np.ndarray, "..."]) -> Float[Tensor, "..."]:
        return torch.tensor(np.asarray(x), dtype=torch.float32, device=self.device)


def rendering_of(pictures: Pictures) -> Rendering:
    """As our renderer returns it."""
    drawn, alpha = (jnp.asarray(x.cpu().numpy()) for x in pictures)
    return Rendering(rgb=drawn[..., :3], alpha=alpha, depth=drawn[..., 3:])


def gaussians_of(fields: Fields) -> Gaussians:
    """The same values in our type."""
    return Gaussians(**{name: jnp.asarray(x.cpu().numpy()) for name, x in fields._asdict().items()})


def compare(
    programs: Programs, at: Inputs, weights: Rendering, calls: list[Call], seconds: float
) -> tuple[Comparison, list[Costs]]:
    """gsplat on the same scene, and the costs of our `calls`, run in turns with it."""
    baseline = Baseline(at, weights)
    peak = baseline.measure_peak_mb()
    agreement = agree(baseline, programs, at, weights)
    repeats = same_twice(baseline.gradient)
    searched = baseline.search_seconds
    costs = in_turns([*calls, baseline.draw, baseline.gradient], seconds)
    draws = 2 * (len(costs[-1].forward.cost) + 1)  # With and without gradient, and once before.
    comparison = Comparison(
        costs=costs[-1],
        search=(baseline.search_seconds - searched) / draws,
        peak_mb=peak,
        repeats=repeats,
        agreement=agreement,
    )
    return comparison, costs[:-1]


def agree(baseline: Baseline, programs: Programs, at: Inputs, weights: Rendering) -> Agreement:
    """Compares pictures and gradients, where no alpha is clamped.

    Raises:
        ValueError: they differ by more than rounding, so that times would not be of the same work.
    """
    at = at._replace(gaussians=within_clamp(at.gaussians, OPACITY_MAX))
    fields = baseline.fields_of(at.gaussians)
    ours, theirs = programs.forward(at), rendering_of(baseline.draw(fields))
    off = np.concatenate([np.abs(ours.rgb - theirs.rgb), np.abs(ours.alpha - theirs.alpha)], -1)
    share = float((off.max(axis=-1) > VISIBLE).mean())
    gradient = programs.gradient(at, weights).gaussians
    apart = jax.tree.map(_relative, gradient, gaussians_of(baseline.gradient(fields)))
    distance = float(np.max(jax.tree.leaves(apart)))
    if not (share <= PIXELS_OFF and distance <= GRADIENTS_OFF):
        raise ValueError(
            f"{share:.1%} of the pixels differ from gsplat's by more than {VISIBLE}, gradients by "
            f"{distance:.1e}; both must do the same for a comparison"
        )
    return Agreement(picture=float(off.max()), pixels_off=share, gradient=distance)


def _relative(ours: Float[Array, "..."], theirs: Float[Array, "..."]) -> float:
    """L2 distance over the length of `theirs`."""
    return float(np.linalg.norm(np.asarray(ours) - theirs) / np.linalg.norm(theirs))
