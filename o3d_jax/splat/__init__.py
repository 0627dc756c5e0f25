"""Differentiable Gaussian splatting (Kerbl et al. 2023): `render`."""

from o3d_jax.splat.project import Culling
from o3d_jax.splat.render import RenderOptions, check_finite, render
from o3d_jax.splat.tiles import Backend, Tiling

__all__ = ["Backend", "Culling", "RenderOptions", "Tiling", "check_finite", "render"]
