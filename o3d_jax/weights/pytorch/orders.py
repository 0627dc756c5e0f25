"""The order of axes that torch has in each module's output, and ours brought into it.

An order is four letters, of videos `b`, frames `f`, places `p` (pixels or tokens) and channels `c`.
Torch may fold neighbors into one axis, which changes no flat array, and leave out those of size 1.
"""

import re

import numpy as np
from jaxtyping import Float

CHANNELS_FIRST = "bfcp"
TORCH_ORDERS = (
    (r"\btemporal_transformer_blocks\.\d+\.", "bpfc"),
    (r"\btransformer_blocks\.\d+|\btemporal_transformer_blocks\.\d+$", "bfpc"),
    (r"\battentions\.\d+\.(proj_in|proj_out|time_mixer|to_[qkv]|to_out\.0)$", "bfpc"),
    (r"\btemporal_res_block\.time_emb_proj$", "bfpc"),
    (r"\btemporal_res_block\b|\btime_mixer$|\btime_conv_out$", "bcfp"),
    (r"_plucker\b", "bfpc"),
    (r"\battns\.\d+\.attn\b", "bfpc"),
    (r"\bvision_model\.embeddings\.patch_embedding$", CHANNELS_FIRST),
    (r"\bvision_model\b", "bfpc"),
)
"""The order of a module whose torch name has the pattern, the first that fits; all others have
CHANNELS_FIRST."""

INTERLEAVED = r"\btemporal_transformer_blocks\.\d+\.attn2\b"
"""The modules whose tokens read the contexts of diffusers 0.25, which are ordered `pb`."""

OTHER_ORDERS = (CHANNELS_FIRST, "bfpc", "bcfp", "bpfc", "pbfc")
"""Orders to try where outputs differ in the expected one, for a hint at the reason."""


def torch_order(name: str, temporal_context: str) -> str:
    """Returns the order in torch's module of that name, under `UnetConfig.temporal_context`."""
    if temporal_context == "interleaved" and re.search(INTERLEAVED, name):
        return "pbfc"
    found = (order for pattern, order in TORCH_ORDERS if re.search(pattern, name))
    return next(found, CHANNELS_FIRST)


def canonical(
    ours: Float[np.ndarray, "..."], name: str, videos: int, frames: int
) -> Float[np.ndarray, "b f p c"]:
    """Returns our module's output with all four axes; of size 1 where one stands for all."""
    c = ours.shape[-1] if ours.ndim else 1
    rows = ours.size // c
    if re.search(r"\btemporal_transformer_blocks\.\d+\.attn1\b", name):
        return ours.reshape(videos, -1, frames, c).swapaxes(1, 2)
    if re.search(r"\btime_pos_embed\b", name):
        return ours.reshape(1, frames, 1, c)
    if rows % (videos * frames) == 0:
        return ours.reshape(videos, frames, -1, c)
    return ours.reshape(videos if rows % videos == 0 else 1, 1, -1, c)


def flat_in_order(
    ours: Float[np.ndarray, "b f p c"], order: str, shape: tuple[int, ...], videos: int, frames: int
) -> Float[np.ndarray, " n"] | None:
    """Returns ours as torch's flat output of that shape, repeated where torch repeats.

    Returns None if torch's shape has no such order.
    """
    theirs = torch_sizes(ours, order, shape, videos, frames)
    if theirs is None:
        return None
    for axis, size in enumerate(theirs):
        if size == 1 and ours.shape[axis] > 1:
            first = ours.take([0], axis=axis)
            # Torch has one for all. Ours are alike but for rounding, or mean something else.
            if np.abs(ours - first).max() > 1e-5 * np.abs(first).max():
                return None
            ours = first
        elif ours.shape[axis] not in (1, size):
            return None
    full = np.broadcast_to(ours, (*theirs, ours.shape[-1]))
    return full.transpose(["bfpc".index(letter) for letter in order]).reshape(-1)


def torch_sizes(
    ours: Float[np.ndarray, "b f p c"], order: str, shape: tuple[int, ...], videos: int, frames: int
) -> tuple[int, ...] | None:
    """Returns the numbers of videos, frames and places in torch's output of that shape.

    Returns None if it cannot have that order.
    """
    size, c = int(np.prod(shape)), ours.shape[-1]
    if ours.size == size:
        return ours.shape[:3]
    if size % c:
        return None
    rows = size // c
    if order.endswith("fc"):  # Frames are an axis of their own there, of size 1 in contexts.
        f = shape[-2] if len(shape) > 1 else 0
        if f not in (1, frames):
            return None
    else:
        f = frames if rows % (videos * frames) == 0 else 1
    b = videos if rows % (videos * f) == 0 else 1
    return (b, f, rows // (b * f)) if rows % (b * f) == 0 else None
