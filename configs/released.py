"""The PyTorch release: all its deviations from the paper, to run its weights and compare with it.

PAPER.md lists the deviations. Hardware: as configs/ouroboros3d.py; 40,000 steps. Weights:

    o3d weights fetch released
    python sample.py IMAGE --checkpoint released --elevation 0 --border 0.2
"""

from pathlib import Path

from o3d_jax.config import (
    CameraConfig,
    Config,
    DataConfig,
    DiffusionConfig,
    LgmConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
    UnetConfig,
)

config = Config(
    name="released",
    model=ModelConfig(
        vae_chunk=1,
        unet=UnetConfig(
            ray_convention="released",
            ccm_convention="released",
            temporal_context="interleaved",
        ),
        lgm=LgmConfig(rotation_norm="over_gaussians", culling="inria"),
    ),
    camera=CameraConfig(radius=1.7417, fov=39.598),
    data=DataConfig(cache=Path(".cache/orbits"), orbit_frames="linspace", resize_filter="bicubic"),
    diffusion=DiffusionConfig(
        feedback_gradient="flows",
        clip_sees_noise_in_training=True,
        training_latents="sampled",
    ),
    optim=OptimConfig(
        reconstruction_loss="l1",
        lpips_network="alex",
        lpips_size=512,
        noisy_weight=0.5,
        clean_weight=0.5,
        ema_decay=0.0,
    ),
    train=TrainConfig(steps=40_000),
)
