"""The few values that flow through the method, as frozen pytrees.

Axis letters, here and everywhere:

    b objects in a batch    v views of one object    n Gaussians
    h w pixels or latents   c channels               d features

Images are float in [0, 1], channels last. Cameras follow OpenCV (x right, y down,
z forward); lengths are in scene units, in which an object fills [-1, 1]^3.
"""

import dataclasses
from typing import Any, dataclass_transform

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def static(default: Any = dataclasses.MISSING) -> Any:
    """Marks a field of a `pytree` as structure (hashed) rather than data (traced)."""
    return dataclasses.field(default=default, metadata={"static": True})


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(static,))
def pytree(cls):
    """Makes `cls` a frozen, keyword-only dataclass and a JAX pytree.

    Building one by hand checks its field shapes (in tests); rebuilding one inside
    `jax.tree.map` does not, so a tree of shapes, shardings or gradients may wear the same class.
    """
    cls = dataclasses.dataclass(frozen=True, kw_only=True)(cls)
    fields = dataclasses.fields(cls)
    data = [f.name for f in fields if not f.metadata.get("static")]
    meta = [f.name for f in fields if f.metadata.get("static")]

    def flatten_with_keys(x):
        children = [(jax.tree_util.GetAttrKey(name), getattr(x, name)) for name in data]
        return children, tuple(getattr(x, name) for name in meta)

    def unflatten(aux, children):
        x = object.__new__(cls)  # Skips __init__, and with it the shape checks.
        for name, value in zip((*data, *meta), (*children, *aux), strict=True):
            object.__setattr__(x, name, value)
        return x

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten)
    return cls


@pytree
class Cameras:
    """Pinhole cameras, one a view."""

    camera_to_world: Float[Array, "*b v 4 4"]
    """OpenCV camera axes (x right, y down, z forward) to world; rigid."""

    intrinsics: Float[Array, "*b v 3 3"]
    """K in units of image width (x) and height (y), so that it holds at any resolution."""


@pytree
class Gaussians:
    """A scene of 3D Gaussians, after activation."""

    means: Float[Array, "*b n 3"]
    """Centers, in scene units."""

    scales: Float[Array, "*b n 3"]
    """Standard deviations along the own axes, in scene units; at least 0."""

    quats: Float[Array, "*b n 4"]
    """Rotations own axes -> world as quaternions (w, x, y, z)."""

    opacities: Float[Array, "*b n"]
    """In [0, 1]."""

    colors: Float[Array, "*b n 3"]
    """RGB in [0, 1], the same from all sides."""


@pytree
class Rendering:
    """What the rasterizer returns for each camera."""

    rgb: Float[Array, "*b v h w 3"]
    """Color over the background, in [0, 1] if the Gaussians' colors are."""

    alpha: Float[Array, "*b v h w 1"]
    """Sum of blending weights, in [0, 1]."""

    depth: Float[Array, "*b v h w 1"]
    """Sum of weight times z in the camera frame, scene units; not divided by alpha."""


@pytree
class Maps:
    """The 3D-aware feedback G(x0) of Sec. 3.3: the reconstruction as each view sees it."""

    rgb: Float[Array, "*b v h w 3"]
    """Rendered color, in [0, 1]."""

    ccm: Float[Array, "*b v h w 3"]
    """Canonical coordinates of the surface (App. A.2), the mean along the ray, in [0, 1]."""

    @staticmethod
    def nothing(*shape: int) -> "Maps":
        """No feedback yet, G = 0 (Sec. 3.3); `shape` is (b, v, h, w)."""
        zeros = jnp.zeros((*shape, 3), jnp.float32)
        return Maps(rgb=zeros, ccm=zeros)


@pytree
class Batch:
    """Orbits of views; view 0 is the input image."""

    images: Float[Array, "b v h w 3"]
    """On white, in [0, 1]."""

    cameras: Cameras
    """Relative to view 0: that camera is on the +z axis, looking at the origin."""

    alpha: Float[Array, "b v h w 1"] | None = None
    """The share of each pixel that the object covers; None where nobody knows."""


@pytree
class Condition:
    """What the denoiser sees of the input image."""

    clip: Float[Array, "b 1 d"]
    """Image embedding; zero where dropped."""

    latents: Float[Array, "b h w c"]
    """VAE latents of the input, not scaled; zero where dropped."""

    added_ids: Float[Array, "b 3"]
    """SVD's micro-conditioning: frames per second - 1, motion bucket, noise on the condition."""


@pytree
class Params:
    """Parameters that train."""

    unet: Any
    """Multi-view denoiser: SVD U-Net, ray embeddings, feedback encoders."""

    lgm: Any
    """Reconstruction model."""

    clip: Any = None
    """Image tower, where it trains along (the default model); else it is in `Frozen`."""

    vae: Any = None
    """VAE, while it trains by itself; else it is in `Frozen`."""


@pytree
class Frozen:
    """Parameters that never train: a separate argument, so that nothing trains them by accident."""

    vae: Any
    clip: Any = None
    """None where the image tower trains along."""

    lpips: Any = None
    """None where the perceptual loss is off."""


@pytree
class TrainState:
    """All that a training step reads and replaces."""

    step: Int[Array, ""]
    params: Params
    ema: Params
    """Exponential moving average of `params`, used for sampling."""

    opt_state: Any
