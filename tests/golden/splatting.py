"""Goldens of Gaussian splatting: images and gradients of a slow float64 rasterizer."""

import pathlib
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from rows import Arrays, Limit, Row, UnknownFileError, compare

from o3d_jax.splat import Culling, RenderOptions, render
from o3d_jax.splat.project import NEAR
from o3d_jax.types import Cameras, Gaussians, Rendering

PARAMETERS = ("means", "scales", "quats", "opacities", "colors")
OUTPUTS = {"color": "rgb", "alpha": "alpha", "depth": "depth"}
SPLAT_ARRAYS = {"viewmats", "Ks", "quat_mode", "safe", "exact_color", *PARAMETERS}

SAFE32 = Limit(5e-5, False, "issue; float32 rounding, prototype 3e-5")
OTHER32 = Limit(0.02, False, "issue; a threshold may flip in float32")
GRADIENT32 = Limit(3e-5, True, "issue; float32 rounding, prototype 1e-5")
THIN32 = Limit(2e-4, True, "issue; thin splats in float32, prototype 7e-5")
OUTPUT64 = Limit(1e-10, False, "float64 against float64, prototype 1e-13")
STORED32 = Limit(3e-7, False, "float64, but the file stores float32 in [0, 4]")
GRADIENT64 = Limit(1e-9, True, "float64 against float64, prototype 7e-14")


def check_splat(file: pathlib.Path, arrays: Arrays) -> Iterator[Row]:
    """Both culling modes, in float32 and in float64."""
    if not np.isclose(arrays.get("near", NEAR), NEAR):
        raise UnknownFileError(f"near plane at {arrays['near']}; the package's is at {NEAR}")
    x64 = jax.config.jax_enable_x64
    try:
        for dtype in (np.float32, np.float64):
            jax.config.update("jax_enable_x64", dtype is np.float64)
            for culling in ("exact", "inria"):
                yield from splat_rows(file, arrays, culling, dtype)
    finally:
        jax.config.update("jax_enable_x64", x64)


def splat_rows(file: pathlib.Path, arrays: Arrays, culling: Culling, dtype: type) -> Iterator[Row]:
    """One culling mode in one precision; float64 needs JAX in 64-bit mode."""
    rendering, gradients = _splat_ours(arrays, culling, dtype)
    prefix = f"{file.stem} {np.dtype(dtype).name} {culling}"
    safe = arrays["safe"]
    for name, field in OUTPUTS.items():
        golden = arrays[f"{culling}_{name}"]
        ours = getattr(rendering, field).reshape(golden.shape)
        if dtype is np.float64:
            limit = OUTPUT64 if golden.dtype == np.float64 else STORED32
            yield compare("splat", f"{prefix} {name}", ours, golden, limit)
        else:
            yield compare("splat", f"{prefix} {name} safe", ours[safe], golden[safe], SAFE32)
            yield compare("splat", f"{prefix} {name} other", ours[~safe], golden[~safe], OTHER32)
    thin = file.stem.startswith("aniso")
    limit = GRADIENT64 if dtype is np.float64 else THIN32 if thin else GRADIENT32
    for name in PARAMETERS:
        ours, golden = getattr(gradients, name), arrays[f"{culling}_g_{name}"]
        yield compare("splat", f"{prefix} d/d {name}", ours, golden, limit)


def _splat_ours(arrays: Arrays, culling: Culling, dtype: type) -> tuple[Rendering, Gaussians]:
    """Our images, and the gradients of the file's linear functional of them."""
    size = (int(arrays["height"]), int(arrays["width"]))
    normalize_quats = str(arrays["quat_mode"]) == "normalize"
    background = jnp.asarray(arrays["background"], dtype)
    cameras = _splat_cameras(arrays, dtype)

    def functional(gaussians):
        rendering = render(
            gaussians, cameras, size, background, RenderOptions(normalize_quats, culling)
        )
        total = jnp.sum(jnp.asarray(arrays["w_color"], dtype) * rendering.rgb)
        total += jnp.sum(jnp.asarray(arrays["w_alpha"], dtype)[..., None] * rendering.alpha)
        total += jnp.sum(jnp.asarray(arrays["w_depth"], dtype)[..., None] * rendering.depth)
        return total, rendering

    gaussians = Gaussians(**{name: jnp.asarray(arrays[name], dtype) for name in PARAMETERS})
    gradients, rendering = jax.jit(jax.grad(functional, has_aux=True))(gaussians)
    return jax.tree.map(np.asarray, (rendering, gradients))


def _splat_cameras(arrays: Arrays, dtype: type) -> Cameras:
    """From world-to-camera matrices and (fx, fy, cx, cy) or 3x3 matrices in px."""
    intrinsics = np.asarray(arrays["Ks"], np.float64)
    if intrinsics.shape[-1] == 4:
        fx, fy, cx, cy = intrinsics.T
        zero, one = np.zeros_like(fx), np.ones_like(fx)
        rows = [[fx, zero, cx], [zero, fy, cy], [zero, zero, one]]
        intrinsics = np.moveaxis(np.array(rows), -1, 0)
    extent = np.array([arrays["width"], arrays["height"], 1], np.float64)
    camera_to_world = np.linalg.inv(np.asarray(arrays["viewmats"], np.float64))
    return Cameras(
        camera_to_world=jnp.asarray(camera_to_world, dtype),
        intrinsics=jnp.asarray(intrinsics / extent[None, :, None], dtype),
    )
