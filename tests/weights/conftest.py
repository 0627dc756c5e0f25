"""A small model, and files of its weights as users have them."""

import runpy
from pathlib import Path

import pytest

SMALL = """
import dataclasses, runpy
from o3d_jax.config import LgmConfig, UnetConfig

tiny = runpy.run_path({tiny!r})["config"]
unet = UnetConfig((8, 16), 1, (1, 2), addition_time_embed_dim=8, norm_num_groups=4,
                  feedback_blocks=1, ray_octaves=2)
lgm = LgmConfig(16, 2, (8, 16), (False, True), False, (16, 8), (True, False), 1, 2, 4, 8)
model = dataclasses.replace(tiny.model, unet=unet, lgm=lgm)
config = dataclasses.replace(tiny, name="small", model=model)
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """A config file: two scales, so half of the tiny one's tensors."""
    path = tmp_path_factory.mktemp("configs") / "small.py"
    path.write_text(SMALL.format(tiny=str(Path(__file__).parents[2] / "configs" / "tiny.py")))
    return path


@pytest.fixture(scope="session")
def config(small):
    return runpy.run_path(str(small))["config"]


@pytest.fixture(scope="session")
def model(config):
    return config.model


@pytest.fixture(scope="session")
def files(model, tmp_path_factory):
    """The release and SVD, in float16."""
    from support import fake_weights as fake  # Not above: pytest's shape checks must come first.

    folder = tmp_path_factory.mktemp("files")
    fake.save_released(folder / "released", model, "float16")
    fake.save_svd(folder / "svd", model, "float16")
    fake.save(folder / "svd" / "lgm_fixrot.safetensors", fake.lgm(model, "float16"))
    return folder
