"""Orders of axes in which `compare` reads torch's outputs: one for each kind of module."""

from pathlib import Path

import numpy as np
import pytest

from support.dumps import write_dump

B, V = 2, 3
OURS = np.random.default_rng(2).standard_normal((B, V, 5, 4, 6), np.float32)  # b v h w c
TOKENS = OURS.transpose(0, 2, 3, 1, 4).reshape(-1, V, 6)  # (b h w) v c
VIDEO_ROWS = OURS[:, 0, 0, 0]
FRAME_ROWS = OURS[0, :, 0, 0]
TEMPORAL = "mid_block.attentions.0.temporal_transformer_blocks.0"
SPATIAL = "mid_block.attentions.0.transformer_blocks.0"
AS_TORCH = {
    "": (OURS, OURS.transpose(0, 1, 4, 2, 3)),
    "conv_in": (OURS, OURS.transpose(0, 1, 4, 2, 3).reshape(-1, 6, 5, 4)),
    "resnets.1.spatial_res_block": (
        OURS.reshape(-1, 5, 4, 6),
        OURS.transpose(0, 1, 4, 2, 3).reshape(-1, 6, 5, 4),
    ),
    "resnets.1.spatial_res_block.time_emb_proj": (
        np.repeat(VIDEO_ROWS, V, axis=0),
        np.repeat(VIDEO_ROWS, V, axis=0),
    ),
    "resnets.1.temporal_res_block.conv1": (OURS, OURS.transpose(0, 4, 1, 2, 3)),
    "resnets.1.temporal_res_block.time_emb_proj": (
        VIDEO_ROWS,
        np.repeat(VIDEO_ROWS[:, None], V, axis=1),
    ),
    "resnets.1.time_mixer": (OURS, OURS.transpose(0, 4, 1, 2, 3)),
    "decoder.time_conv_out": (OURS, OURS.transpose(0, 4, 1, 2, 3)),
    "attentions.1.time_mixer": (OURS.reshape(B, V, -1, 6), OURS.reshape(B * V, -1, 6)),
    "attentions.1": (OURS, OURS.transpose(0, 1, 4, 2, 3).reshape(-1, 6, 5, 4)),
    "attentions.1.time_pos_embed.linear_2": (FRAME_ROWS, np.tile(FRAME_ROWS, (B, 1))),
    f"{SPATIAL}.attn2.to_v": (VIDEO_ROWS[:, None], np.repeat(VIDEO_ROWS, V, axis=0)[:, None]),
    f"{SPATIAL}.attn1.to_q": (OURS.reshape(B * V, -1, 6), OURS.reshape(B * V, -1, 6)),
    TEMPORAL: (OURS.reshape(B, V, -1, 6), OURS.reshape(B * V, -1, 6)),
    f"{TEMPORAL}.ff_in": (OURS.reshape(B, V, -1, 6), TOKENS),
    f"{TEMPORAL}.attn1.to_q": (TOKENS, TOKENS),
    f"{TEMPORAL}.attn2.to_v": (
        VIDEO_ROWS[:, None],
        np.repeat(VIDEO_ROWS[:, None], 20, axis=0),
    ),
    f"{TEMPORAL}.attn2": (
        VIDEO_ROWS[:, None, None],
        np.repeat(np.repeat(VIDEO_ROWS[:, None], 20, axis=0), V, axis=1),
    ),
    "down_plucker.1.embed.2": (OURS, OURS),
    "unet.mid_block.attns.0.attn.qkv": (OURS.reshape(B, -1, 6), OURS.reshape(B, -1, 6)),
    "unet.mid_block.attns.0.norm": (
        OURS.reshape(-1, 5, 4, 6),
        OURS.transpose(0, 1, 4, 2, 3).reshape(-1, 6, 5, 4),
    ),
    "unet.mid_block.nets.0.emb_layers.1": (np.repeat(VIDEO_ROWS, V, axis=0), VIDEO_ROWS),
    "unet.time_embed.2": (np.repeat(VIDEO_ROWS[:1], B, axis=0), VIDEO_ROWS[:1]),
}
"""By torch name: our output, and torch's with the same values where the originals have them."""


def compared(folder: Path, name: str, ours, theirs, stride=1, temporal_context="per_video"):
    """The row of one module."""
    from o3d_jax.weights.pytorch.compare import compare_output
    from o3d_jax.weights.pytorch.dump import Dump
    from o3d_jax.weights.pytorch.replay import Replay

    record = Dump(write_dump(folder, "any", {}, [(name, theirs)], stride)).records[0]
    run = Replay(None, None, (), B, V, temporal_context=temporal_context)
    return compare_output(ours, record, run)


@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("name", AS_TORCH)
def test_outputs_are_compared_in_the_order_of_axes_of_torchs_module(name, stride, tmp_path):
    ours, theirs = AS_TORCH[name]
    row = compared(tmp_path / "same", name, ours, theirs, stride)
    assert (row.largest, row.relative, row.agrees_as) == (0.0, 0.0, None)
    rng = np.random.default_rng(3)
    noise = 0.01 * rng.standard_normal(theirs.shape)
    row = compared(tmp_path / "near", name, ours, theirs + noise, stride)
    # Sums over few values, thinned to one in the worst case.
    assert 0.001 < row.relative < 0.05
    assert row.agrees_as is None
    other = rng.standard_normal(theirs.shape)  # In no order do other values agree.
    row = compared(tmp_path / "other", name, ours, other, stride)
    assert row.relative > 0.5
    assert row.agrees_as is None


MIXED = OURS.reshape(B, 5, 4, V, 6)  # As if pixels came before frames: values at wrong places.


@pytest.mark.parametrize(
    ("name", "ours", "theirs"),
    [
        ("conv_in", MIXED.transpose(0, 3, 1, 2, 4), AS_TORCH["conv_in"][1]),
        (f"{TEMPORAL}.attn1.to_q", OURS.reshape(-1, V, 6), TOKENS),
        (f"{TEMPORAL}.attn1", OURS.reshape(-1, V, 6), TOKENS),
        (TEMPORAL, MIXED.transpose(0, 3, 1, 2, 4).reshape(B, V, -1, 6), AS_TORCH[TEMPORAL][1]),
        (TEMPORAL, OURS.reshape(B, V, -1, 6), OURS.transpose(0, 2, 3, 1, 4).reshape(B * V, -1, 6)),
        ("resnets.1.time_mixer", OURS, OURS.transpose(0, 1, 4, 2, 3)),
        ("", OURS, OURS.transpose(0, 4, 1, 2, 3)),
        ("attentions.1.time_pos_embed", FRAME_ROWS, np.repeat(FRAME_ROWS, B, axis=0)),
        (f"{SPATIAL}.attn2.to_v", VIDEO_ROWS[:, None], np.tile(VIDEO_ROWS, (V, 1))[:, None]),
    ],
)
def test_right_values_at_wrong_frames_or_places_differ(name, ours, theirs, tmp_path):
    assert compared(tmp_path / "dump", name, ours, theirs).relative > 0.5


def test_contexts_of_diffusers_025_differ_from_ours_per_video_and_agree_with_interleaved(tmp_path):
    name, ours = f"{TEMPORAL}.attn2.to_v", VIDEO_ROWS[:, None]
    interleaved = np.tile(VIDEO_ROWS[:, None], (20, 1, 1))
    row = compared(tmp_path / "old", name, ours, interleaved)
    assert row.relative > 0.5
    assert (row.order, row.agrees_as) == ("bpfc", "pbfc")
    row = compared(tmp_path / "same", name, ours, interleaved, temporal_context="interleaved")
    assert (row.relative, row.agrees_as) == (0.0, None)
    output = np.repeat(interleaved, V, axis=1)
    row = compared(tmp_path / "out", f"{TEMPORAL}.attn2", ours[:, None], output, 1, "interleaved")
    assert row.relative == 0.0
    per_video = AS_TORCH[name][1]
    row = compared(tmp_path / "new", name, ours, per_video, temporal_context="interleaved")
    assert row.relative > 0.5


def test_outputs_that_have_not_torchs_size_have_no_order(tmp_path):
    assert compared(tmp_path / "one", "conv_in", OURS, OURS[:, :, :-1]) is None
    # One row for all videos there; here each has its own.
    assert compared(tmp_path / "two", "time_embed.0", VIDEO_ROWS, VIDEO_ROWS[:1]) is None
