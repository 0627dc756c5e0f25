"""The paper's model (Sec. 4.1): 512 px, 8 views, 1.9 B parameters.

Hardware: 8 A100 or more, batch 32, 30,000 steps. Starts from converted SVD, LGM and LPIPS weights:

    python train.py configs/ouroboros3d.py --weights CHECKPOINT
"""

from o3d_jax.config import Config

config = Config(name="ouroboros3d")
