"""The default model: 64 px, 8 views, every part of the method.

Hardware: 2 CPU cores. Each network trains alone first, then all together:

    python train.py configs/nano.py --train.part vae
    python train.py configs/nano.py --train.part lgm
    python train.py configs/nano.py --train.part unet
    python train.py configs/nano.py

By default on synthetic objects. The bundled weights have also seen low-poly models, and trained
jointly with `--optim.learning-rate 3e-4 --optim.ema-decay 0.99 --optim.alpha-weight 0.5`, later
`--diffusion.feedback-probability 0.75`; the last hour and a half, LGM and denoiser alone and then
jointly again, was with `--optim.optimizer muon`, and brought 0.8 dB on synthetic objects.
`benchmarks/results/training.md` has the recipe and its curves. Their renders of held-out objects
reach 20.7 dB (synthetic), 21.6 dB (models of other families) and 19.4 dB (scans).
"""

from pathlib import Path

from o3d_jax.config import (
    ClipConfig,
    Config,
    DataConfig,
    LgmConfig,
    ModelConfig,
    OptimConfig,
    SampleConfig,
    TrainConfig,
    UnetConfig,
    VaeConfig,
)

config = Config(
    name="nano",
    model=ModelConfig(
        image_size=64,
        dtype="float32",
        remat=False,
        vae=VaeConfig(
            block_out_channels=(12, 24, 48),
            layers_per_block=1,
            norm_num_groups=4,
            mid_attention="always",
        ),
        unet=UnetConfig(
            block_out_channels=(32, 64, 112, 112),
            layers_per_block=1,
            num_attention_heads=(2, 4, 4, 4),
            addition_time_embed_dim=32,
            norm_num_groups=8,
            feedback_blocks=1,
        ),
        clip=ClipConfig(
            hidden_size=96,
            intermediate_size=384,
            num_hidden_layers=3,
            num_attention_heads=4,
            projection_dim=96,
            patch_size=8,
            image_size=64,
        ),
        lgm=LgmConfig(
            input_size=64,
            down_channels=(16, 32, 64, 112),
            down_attention=(False, False, False, True),
            up_channels=(112, 64, 32),
            up_attention=(True, False, False),
            layers_per_block=1,
            num_heads=4,
            norm_num_groups=8,
            time_features=32,
            colors="pixel",
            positions="ray",
        ),
    ),
    data=DataConfig(
        objects=20_480, mirror=True, recolor=True, cache=Path(".cache/orbits"), workers=2
    ),
    sample=SampleConfig(levels=8, sigma_max=80.0, max_guidance=2.0),
    optim=OptimConfig(learning_rate=1e-3, warmup_steps=100, ema_decay=0.999, lpips_weight=0.0),
    train=TrainConfig(
        steps=100_000,
        batch_size=8,
        log_every=50,
        eval_every=500,
        eval_objects=32,
        sample_every=2_000,
        save_every=100,
        train_image_encoder=True,
    ),
)
