"""Training sets of test size, and what their images must be."""

from pathlib import Path

import numpy as np

from o3d_jax.config import (
    Config,
    DataConfig,
    LgmConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    UnetConfig,
    VaeConfig,
)
from o3d_jax.data.orbits.folder import RenderedOrbit, write_orbit
from o3d_jax.data.toys.cache import SyntheticOrbits
from o3d_jax.geometry.orbits import orbit_poses

OBJECTS, FRAMES, VIEWS = 12, 7, 3


def small_config(batch_size: int = 3, **data) -> Config:
    return Config(
        name="test",
        model=ModelConfig(
            image_size=16,
            num_views=VIEWS,
            vae=VaeConfig(block_out_channels=(4, 8), norm_num_groups=4),
            unet=UnetConfig(
                block_out_channels=(8, 8), num_attention_heads=(1, 1), norm_num_groups=4
            ),
            lgm=LgmConfig(num_views=3),
        ),
        data=DataConfig(**{"objects": OBJECTS, "frames_per_orbit": FRAMES, "seed": 5} | data),
        optim=OptimConfig(lpips_weight=0.0),
        train=TrainConfig(batch_size=batch_size),
    )


def white(rgba: np.ndarray) -> np.ndarray:
    rgba = rgba / 255
    return rgba[..., :3] * rgba[..., 3:] + 1 - rgba[..., 3:]


def white_orbits(config: Config) -> np.ndarray:
    orbits = SyntheticOrbits(config)
    return white(np.stack([orbits[i].rgba for i in range(len(orbits))]))


def random_orbit(name: str, seed: int, size: int = 24, frames: int = FRAMES) -> RenderedOrbit:
    """Cameras of the default config, and noise for frames: as good as an object to a reader."""
    rng = np.random.default_rng(seed)
    poses = orbit_poses(rng.uniform(-5, 30), np.arange(frames) * 360 / frames, 1.5)
    rgba = rng.integers(0, 256, (frames, size, size, 4), np.uint8)
    return RenderedOrbit(name, rgba, poses, 49.1)


def write_set(root: Path, objects: int, size: int = 24, kind: str = "object") -> Path:
    """A folder with one orbit of each of some objects."""
    for i in range(objects):
        name = f"{kind}{i:02d}/0"
        write_orbit(root / name, random_orbit(name, i, size))
    return root
