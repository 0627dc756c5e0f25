"""The default model: 64 px, 8 views, every part of the method, on synthetic objects.

Hardware: 2 CPU cores. Train each network alone first, then all together:

    python -m o3d_jax.commands.train_vae configs/nano.py --train.batch-size 2
    python -m o3d_jax.commands.train_lgm configs/nano.py
    python -m o3d_jax.commands.train_unet configs/nano.py
    python train.py configs/nano.py
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
            positions="ray",
        ),
    ),
    data=DataConfig(objects=4_000, cache=Path(".cache/orbits"), workers=2),
    sample=SampleConfig(levels=16, sigma_max=80.0, max_guidance=2.0),
    optim=OptimConfig(learning_rate=3e-4, schedule="cosine", warmup_steps=50, lpips_weight=0.0),
    train=TrainConfig(
        steps=500,
        batch_size=4,
        log_every=20,
        eval_every=250,
        save_every=100,
        train_image_encoder=True,
    ),
)
