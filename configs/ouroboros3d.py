"""The paper's model (Sec. 4.1): 512 px, 8 views, 1.9 B parameters.

Hardware: 8 A100 or more, batch 32, 30,000 steps; 1.3 TB of disk for the 80,000 rendered orbits.
Starts from converted SVD, LGM and LPIPS weights:

    o3d weights fetch svd-lgm --lpips TRUNK LIN
    python train.py configs/ouroboros3d.py --weights svd-lgm --data.cache FOLDER
"""

from pathlib import Path

from o3d_jax.config import Config, DataConfig, ModelConfig

config = Config(
    name="ouroboros3d",
    model=ModelConfig(vae_chunk=1),
    data=DataConfig(cache=Path(".cache/orbits")),
)
