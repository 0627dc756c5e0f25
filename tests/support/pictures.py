"""Drawn pictures of an object, for tests of how it is cut out."""

import numpy as np

ORANGE, WHITE, GREEN = (0.9, 0.4, 0.1), (1.0, 1.0, 1.0), (0.1, 0.8, 0.2)


def disc(height, width, center, radius, oversample=8):
    """Coverage of pixels by a disc, by counting sub-pixels."""
    y = (np.arange(height * oversample) + 0.5)[:, None] / oversample - center[0]
    x = (np.arange(width * oversample) + 0.5)[None] / oversample - center[1]
    inside = (x**2 + y**2 <= radius**2).astype(np.float32)
    return inside.reshape(height, oversample, width, oversample).mean(axis=(1, 3))


def over(coverage, color, background):
    """Opaque RGBA of an object over a background."""
    color, background = np.float32(color), np.float32(background)
    blend = coverage[..., None] * color[None, None] + (1 - coverage[..., None]) * background
    return np.concatenate([blend, np.ones_like(blend[..., :1])], axis=-1).astype(np.float32)
