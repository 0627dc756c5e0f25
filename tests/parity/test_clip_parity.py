"""The image tower is transformers', and the resize in front of it that of diffusers' pipeline."""

import functools
import warnings

import numpy as np
import pytest
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from o3d_jax.config import ClipConfig
from o3d_jax.nn.clip import CLIP_MEAN, CLIP_STD, ClipVision, resize_antialiased
from support.originals import evaluate, load
from support.quick import jit, normal
from support.synthetic import synthetic_variables

with warnings.catch_warnings():  # The pipeline asks for torchvision, which it does not use here.
    warnings.simplefilter("ignore")
    from diffusers.pipelines.stable_video_diffusion import pipeline_stable_video_diffusion

pytestmark = pytest.mark.parity
resize_original = pipeline_stable_video_diffusion._resize_with_antialiasing


def pixels(seed: int, *shape: int):
    return 0.5 + 0.3 * normal(seed, *shape)


def resize(images, size: int):
    """As the pipeline does: on images in [-1, 1]."""
    resized = resize_original(2 * images.movedim(-1, -3) - 1, (size, size))
    return ((resized + 1) / 2).movedim(-3, -1)


def embed(clip, images):
    """As the pipeline does."""
    size = clip.config.image_size
    images = resize(images, size) if images.shape[1:3] != (size, size) else images
    images = (images - images.new_tensor(CLIP_MEAN)) / images.new_tensor(CLIP_STD)
    return clip(images.movedim(-1, 1)).image_embeds[:, None]


@pytest.mark.parametrize("seed", range(4))
def test_embedding_is_that_of_pipeline_and_transformers(seed):
    rng = np.random.default_rng(seed)
    heads, patch, layers = (int(n) for n in rng.integers(1, 5, 3))
    hidden, inside, projection = (int(n) for n in rng.integers(3, 30, 3))
    size = patch * int(rng.integers(2, 5))
    config = ClipConfig(heads * hidden, inside, layers, heads, projection, patch, size)
    ours = ClipVision(config)
    # Every other draw has the size at which nothing is resized.
    h, w = (size, size) if seed % 2 else (int(n) for n in size + rng.integers(1, 30, 2))
    images = pixels(seed, 3, h, w, 3)
    variables = synthetic_variables(ours, images, seed=seed)
    original = CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=inside,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            projection_dim=projection,
            patch_size=patch,
            image_size=size,
            hidden_act="gelu",
        )
    )
    expected = evaluate(load(original, variables), embed, images)
    expected.check(jit(ours.apply)(variables, images))


@pytest.mark.parametrize("seed", range(12))
def test_resize_is_that_of_the_pipeline(seed):
    rng = np.random.default_rng(seed)
    h, w = (int(n) for n in rng.integers(7, 90, 2))
    size = int(rng.integers(5, 60))  # Some of the twelve grow one side and shrink the other.
    images = pixels(seed, 2, h, w, 3)
    call = functools.partial(lambda _, x: resize(x, size))
    evaluate(NoModule(), call, images).check(resize_antialiased(images, size))


class NoModule:
    """Stands for a module where there is none: a function in any precision."""

    def double(self):
        return self
