"""Goldens of formulas: rays, coordinate maps, noise levels, conditioning, cameras of a data set."""

import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from networks import cameras_of
from PIL import Image
from rows import ROUNDING, Golden, Limit, UnknownFileError, channels_first, channels_last, merged

from o3d_jax import edm
from o3d_jax.config import DataConfig, DiffusionConfig
from o3d_jax.data.orbits.folder import read_index
from o3d_jax.data.sources import FolderOrbit
from o3d_jax.data.views import opaque_images
from o3d_jax.geometry.ccm import coordinate_map
from o3d_jax.geometry.orbits import orbit, pinhole, relative_poses
from o3d_jax.geometry.rays import (
    harmonic_embedding,
    pluecker_rays,
    ray_directions,
    ray_origins,
)
from o3d_jax.geometry.released import linspace_frames, released_coordinate_map, released_rays
from o3d_jax.nn.layers import sinusoid
from o3d_jax.steps.condition import added_ids, drop_condition
from o3d_jax.steps.denoise import denoise, guidance_scale, guide, per_object
from o3d_jax.steps.sample import ode_step
from o3d_jax.types import Cameras, Condition, Maps

FLIP = np.diag([1.0, -1.0, -1.0, 1.0])
"""OpenGL's camera axes to OpenCV's, and back."""


def check_plucker(golden: Golden) -> dict[str, Any]:
    """Rays of the release's U-Net, of its unused variant, of LGM, and their embedding."""
    found: dict[str, Any] = {}
    if golden.has("in.c2w"):
        found |= _denoiser_rays(golden, "") | _lgm_rays(golden, "") | _unused_rays(golden)
    if golden.has("in.hyper_c2w"):
        found |= _denoiser_rays(golden, "hyper_") | _lgm_rays(golden, "hyper_")
    if golden.has("in.harmonic_x"):
        x = jnp.asarray(golden.given("harmonic_x"))
        octaves = (golden.arrays["out.harmonic_y"].shape[-1] // x.shape[-1] - 1) // 2
        found["out.harmonic_y"] = harmonic_embedding(x, octaves)
        found["out.harmonic_frequencies"] = 2.0 ** np.arange(octaves)
    return found | _original_lgm_rays(golden)


def plucker_limits(golden: Golden) -> dict[str, Limit]:
    """The highest octave multiplies the rounding of a ray by 32."""
    limit = Limit(32 * ROUNDING, False, "float32 rays, times 32 in the highest octave")
    return {name: limit for name in golden.arrays if name.endswith("plucker78")}


def _size_of(golden: Golden, name: str, axis: int) -> tuple[int, int]:
    """(h, w) of an output whose height is at this axis; what is not in the file is not computed."""
    if not golden.has(name):
        return (1, 1)
    shape = golden.arrays[name].shape
    return shape[axis], shape[axis + 1]


def _denoiser_rays(golden: Golden, prefix: str) -> dict[str, Any]:
    cameras = cameras_of(golden.given(f"{prefix}c2w"), golden.given(f"{prefix}intrinsics"))
    name = f"out.{prefix}mvunet_"
    rays = released_rays(cameras, _size_of(golden, f"{name}dirs", -3))
    return {
        f"{name}origins": jnp.broadcast_to(ray_origins(cameras), (*rays.shape[:-1], 3)),
        f"{name}dirs": rays[..., 3:],
        f"{name}plucker6": rays,
        f"{name}plucker78": harmonic_embedding(rays, 6),
    }


def _unused_rays(golden: Golden) -> dict[str, Any]:
    """True rays with skew, but rows and columns of the grid swapped; `sensor_size` 2 is a grid of
    twice the extent."""
    if not golden.has("in.intrinsics_skew"):
        return {}
    size = golden.config["resolution"]
    poses = merged(golden.given("c2w"))
    cameras = cameras_of(poses, golden.given("intrinsics_skew"))

    def swapped(x: jax.Array) -> jax.Array:
        return jnp.swapaxes(x, -3, -2).reshape(len(poses), -1, x.shape[-1])

    rays = swapped(pluecker_rays(cameras, (size, size)))
    halved = golden.given("intrinsics_skew") / np.array([2.0, 2.0, 1.0])[None, :, None]
    wide = ray_directions(cameras_of(poses, halved), (size, size))
    origins = jnp.broadcast_to(ray_origins(cameras)[:, 0], (*rays.shape[:-1], 3))
    return {
        "out.project_origins": origins,
        "out.project_dirs": rays[..., 3:],
        "out.project_plucker6": rays,
        "out.project_plucker78": harmonic_embedding(rays, 6),
        "out.project_sensor2_unnormalized_dirs": swapped(wide),
    }


def _of_fov(poses: np.ndarray, fov_deg: np.ndarray) -> Cameras:
    intrinsics = np.stack([pinhole(float(fov)) for fov in fov_deg.ravel()])
    return cameras_of(merged(poses), intrinsics)


def _lgm_rays(golden: Golden, prefix: str) -> dict[str, Any]:
    poses, fov = golden.given(f"{prefix}c2w"), golden.given(f"{prefix}fov_deg")
    size = golden.config["lgm_h"], golden.config["lgm_w"]
    found = {}
    for axes, flip in (("opencv", np.eye(4)), ("opengl", FLIP)):
        rays = pluecker_rays(_of_fov(poses @ flip, fov), size)
        origins = ray_origins(_of_fov(poses @ flip, fov))
        found[f"out.{prefix}lgm_rays_o_{axes}"] = jnp.broadcast_to(origins, (*rays.shape[:-1], 3))
        found[f"out.{prefix}lgm_rays_d_{axes}"] = rays[..., 3:]
    cameras = _of_fov(poses, fov)
    found[f"out.{prefix}lgm_plucker6_nchw"] = channels_first(pluecker_rays(cameras, size))
    return found


def _original_lgm_rays(golden: Golden) -> dict[str, Any]:
    """Four views around the object, 49.1 degrees at 1.5, as LGM alone has them."""
    size = _size_of(golden, "out.lgm_original_default_rays_nchw", -2)
    cameras = orbit(0.0, np.array([0, 90, 180, 270]), 1.5, 49.1)
    return {
        "out.lgm_original_orbit_poses": np.asarray(cameras.camera_to_world) @ FLIP,
        "out.lgm_original_default_rays_nchw": channels_first(pluecker_rays(cameras, size)),
    }


def check_ccm(golden: Golden) -> dict[str, Any]:
    """Coordinate maps: released, and the paper's at pixel centers and at integer pixels."""
    found: dict[str, Any] = {}
    cases = {"": ("depth", ""), "large_": ("depth_large", ""), "hyper_": ("hyper_depth", "hyper_")}
    for prefix, (name, cameras_prefix) in cases.items():
        if not golden.has(f"in.{name}"):
            continue
        depth = jnp.asarray(channels_last(golden.given(name)))
        poses = golden.given(f"{cameras_prefix}c2w")
        k = np.asarray(golden.given(f"{cameras_prefix}intrinsics"), np.float64)
        shifted = k.copy()  # Pixel j at j / w rather than (j + 0.5) / w.
        h, w = depth.shape[-3:-1]
        shifted[..., :2, 2] += np.array([0.5 / w, 0.5 / h])
        maps = {
            "released": released_coordinate_map(depth, cameras_of(poses, k)),
            "paper_halfpixel": coordinate_map(depth, cameras_of(poses, k)),
            "paper_intpixel": coordinate_map(depth, cameras_of(poses, shifted)),
        }
        found |= {f"out.{prefix}{what}": channels_first(ccm) for what, ccm in maps.items()}
    return found


def ccm_limits(golden: Golden) -> dict[str, Limit]:
    """Coordinates are rounded before they are clamped to [0, 1]."""
    if not golden.has("in.depth_large"):
        return {}
    furthest = float(np.abs(golden.given("depth_large")).max())
    limit = Limit(2**-24 * furthest, False, f"one rounding of coordinates up to {furthest:.0f}")
    return {name: limit for name in golden.arrays if name.startswith("out.large_")}


def scheduler_limits(golden: Golden) -> dict[str, Limit]:
    """Numbers of many magnitudes, each held to its own."""
    each = Limit(5e-6, False, "float32 of each number; a seventh power is 7 times its root", 1)
    level = Limit(5e-6, False, "float32 of each level, over the steps before it", 1)
    numbers = ("sigmas", "sigmas_train", "cond_sigmas_train", "c_in", "c_out", "c_skip", "weighing")
    runs = ("trajectory", "pred_x0", "scaled_inputs")
    found = {f"out.{name}": each for name in numbers} | {f"out.{name}": level for name in runs}
    return {name: limit for name, limit in found.items() if golden.has(name)}


def cond_limits(golden: Golden) -> dict[str, Limit]:
    """The ids are of many magnitudes."""
    limit = Limit(1e-7, False, "float32 of each id", 2)
    return {name: limit for name in golden.arrays if name == "out.added_time_ids"}


def check_scheduler(golden: Golden) -> dict[str, Any]:
    """Noise levels, a whole trajectory with an analytic network, and draws of sigma in training."""
    config, about = golden.config, golden.config["scheduler"]
    if (about["prediction_type"], about["timestep_spacing"]) != ("v_prediction", "leading"):
        raise UnknownFileError("ours is SVD's scheduler: v_prediction, leading")
    sigmas = edm.sigma_schedule(
        config["num_inference_steps"], about["sigma_min"], about["sigma_max"]
    )
    std = edm.initial_deviation(about["sigma_max"])
    offset = jnp.asarray(channels_last(golden.given("model_a")))
    x = std * jnp.asarray(channels_last(golden.given("init_noise")))
    nothing = _no_condition(x)

    def network(x_in, c_noise, condition, maps):
        return -0.5 * x_in + 0.3 * jnp.tanh(per_object(c_noise, x_in) + offset) + 0.1 * offset

    def unused(x, sigma):
        raise AssertionError("an Euler step needs no second evaluation")

    xs, x0s, inputs = [x], [], []
    for sigma, sigma_next in zip(sigmas[:-1], sigmas[1:], strict=True):
        inputs.append(edm.scalings(sigma).c_in * x)
        x0s.append(denoise(network, x, jnp.full(len(x), sigma), *nothing))
        x = ode_step(unused, x, x0s[-1], sigma, sigma_next, "euler")
        xs.append(x)
    found = {
        "sigmas": sigmas,
        "timesteps": edm.scalings(sigmas[:-1]).c_noise,
        "init_noise_sigma": np.float32(std),
        "trajectory": channels_first(jnp.stack(xs)),
        "pred_x0": channels_first(jnp.stack(x0s)),
        "scaled_inputs": channels_first(jnp.stack(inputs)),
    }
    return {f"out.{name}": x for name, x in (found | _drawn_sigmas(golden)).items()}


def _no_condition(x: jax.Array) -> tuple[Condition, Maps]:
    b = len(x)
    condition = Condition(
        clip=jnp.zeros((b, 1, 1)), latents=jnp.zeros((b, *x.shape[2:])), added_ids=jnp.zeros((b, 3))
    )
    return condition, Maps.nothing(b, x.shape[1], 1, 1)


def _drawn_sigmas(golden: Golden) -> dict[str, Any]:
    config, u = golden.config, jnp.asarray(golden.given("u"))
    sigma = edm.sigma_quantile(u, config["sigma_loc"], config["sigma_scale"])
    s = edm.scalings(sigma)
    return {
        "sigmas_train": sigma,
        "cond_sigmas_train": edm.sigma_quantile(u, config["cond_loc"], config["cond_scale"]),
        "c_in": s.c_in,
        "c_out": s.c_out,
        "c_skip": s.c_skip,
        "c_noise": s.c_noise.reshape(-1),
        "weighing": edm.loss_weight(sigma),
    }


def check_cond(golden: Golden) -> dict[str, Any]:
    """Added ids, dropping of the condition, guidance, sinusoids."""
    config = golden.config
    p = jnp.asarray(golden.given("random_p"))
    given = Condition(
        clip=jnp.asarray(golden.given("encoder_hidden_states")),
        latents=jnp.asarray(channels_last(golden.given("conditional_latents"))),
        added_ids=jnp.zeros((len(p), 3)),
    )
    dropped = drop_condition(given, p, config["dropout_prob"])
    ones = jax.tree.map(jnp.ones_like, given)
    masks = drop_condition(ones, p, config["dropout_prob"])
    without, with_condition = np.split(channels_last(golden.given("noise_pred")), 2)
    guidance = guidance_scale(without.shape[1], config["min_guidance"], config["max_guidance"])
    diffusion = DiffusionConfig(fps=config["fps"] + 1, motion_bucket=config["motion_bucket_id"])
    rows = golden.arrays["out.added_time_ids"].shape[0]
    ids = added_ids(diffusion, jnp.full(rows, config["noise_aug_strength"]))
    features = config["addition_time_embed_dim"]
    c_noise = jnp.asarray(golden.arrays["out.time_proj_c_noise_input"])
    found = {
        "added_time_ids": ids,
        "prompt_mask": 1 - masks.clip[:, 0, 0],
        "image_mask": masks.latents[:, 0, 0, 0],
        "encoder_hidden_states": dropped.clip,
        "conditional_latents": channels_first(dropped.latents),
        "guidance_scale": guidance,
        "guided": channels_first(
            guide(jnp.asarray(without), jnp.asarray(with_condition), guidance)
        ),
        "time_proj_added_ids": sinusoid(ids[0], features),
        "time_proj_c_noise": sinusoid(c_noise, features),
        "time_proj_c_noise_input": c_noise,
    }
    return {f"out.{name}": x for name, x in found.items()}


def check_dataset(golden: Golden) -> dict[str, Any]:
    """The release's loader, by what ours is made of: a folder in its format, read and cut."""
    config = golden.config
    views, size = config["num_frames"], config["img_wh"][0]
    poses, rgba = golden.given("transform_matrix"), golden.given("rgba")
    with tempfile.TemporaryDirectory() as name:
        write_release_folder(pathlib.Path(name), poses, rgba, config["camera_angle_x"])
        index = read_index(pathlib.Path(name))
        chosen = linspace_frames(config["start_idx"], views, len(index.files))
        frames = FolderOrbit(name, index).read(chosen)
    relative = relative_poses(index.camera_to_world[chosen])
    fov, k = np.deg2rad(index.fov), pinhole(index.fov)
    as_released = DataConfig(resize_filter="bicubic", blending="display")
    images = channels_first(2 * opaque_images(frames, size, as_released) - 1)
    to_camera = np.swapaxes(np.linalg.inv(relative), -2, -1)
    projection = np.tile(_projection(k).T, (views, 1, 1))
    found = {
        "c2w": relative,
        "intrinsics": np.tile(k, (views, 1, 1)),
        "fov_deg": np.full(views, np.rad2deg(fov)),
        "diffusion_images": images,
        "condition_image": images[0],
        "selected_after_roll": linspace_frames(0, views, len(poses)),
        "world_to_camera_transposed": to_camera,
        "projection_transposed": projection,
        "full_projection": to_camera @ projection,
        "camera_center": relative[:, :3, 3],
        "cam_fov_x": np.full(views, fov),
        "cam_fx": np.full(views, k[0, 0] * size),
        "cam_cx": np.full(views, k[0, 2] * size),
    }
    return {f"out.{name}": x for name, x in found.items()}


def write_release_folder(
    folder: pathlib.Path, poses: np.ndarray, rgba: np.ndarray, camera_angle_x: float
) -> None:
    """One object as the release's loader finds it: Blender's camera axes, frames in WebP."""
    locations = []
    for i, (pose, frame) in enumerate(zip(poses, rgba, strict=True)):
        name = f"render_{i:04d}.webp"
        Image.fromarray(frame).save(folder / name, lossless=True, exact=True)
        locations.append({"transform_matrix": pose.tolist(), "frames": [{"name": name}]})
    meta = {"camera_angle_x": camera_angle_x, "locations": locations}
    (folder / "meta.json").write_text(json.dumps(meta))


def _projection(k: np.ndarray, near: float = 0.01, far: float = 100.0) -> np.ndarray:
    """What the CUDA rasterizer is given beside a camera; ours needs none."""
    depth = far / (far - near)
    return np.array(
        [
            [2 * k[0, 0], 0, 0, 0],
            [0, 2 * k[1, 1], 0, 0],
            [0, 0, depth, -near * depth],
            [0, 0, 1, 0],
        ]
    )
