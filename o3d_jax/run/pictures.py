"""What people see of an evaluation during training: figures by name, and a picture."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from o3d_jax.media.sheets import grid
from o3d_jax.metrics import psnr
from o3d_jax.run.heldout import SIGMAS
from o3d_jax.run.programs import Evaluation
from o3d_jax.types import Batch

PICTURED = 4
"""The most objects in the picture."""

MOST_DB = 100.0
"""PSNR that stands for equal images, for which it is infinite: a ball looks the same all around."""


def figures_row(heldout: Batch, found: Evaluation) -> dict[str, float]:
    """Returns means over the objects, by name: losses, and PSNRs in dB of the novel views.

    What is sampled has a baseline beside it: the input, copied to all views.
    """
    figures, row = found.figures, {}
    if figures.diffusion is not None:
        losses = np.asarray(figures.diffusion).mean(0)
        row = {f"diffusion_{s:g}": float(x) for s, x in zip(SIGMAS, losses, strict=True)}
    for name, values in (("lgm_psnr", figures.lgm), ("vae_psnr", figures.vae)):
        if values is not None:
            row[name] = float(np.mean(values))
    if found.sampled is None:
        return row

    truth = np.asarray(heldout.images)
    renders = np.asarray(found.sampled.reconstruction.rendering.rgb)
    row["views_psnr"] = _novel_psnr(np.asarray(found.sampled.views), truth)
    row["renders_psnr"] = _novel_psnr(renders, truth)
    row["copied_psnr"] = _novel_psnr(np.broadcast_to(truth[:, :1], truth.shape), truth)
    return row


def _novel_psnr(
    images: Float[np.ndarray, "b v h w 3"], truth: Float[np.ndarray, "b v h w 3"]
) -> float:
    """Returns the mean PSNR over all views but the input, in dB."""
    db = psnr(jnp.asarray(images.clip(0, 1)), jnp.asarray(truth))
    return float(jnp.minimum(db, MOST_DB)[:, 1:].mean())


def evaluation_sheet(heldout: Batch, found: Evaluation) -> Float[np.ndarray, "h w 3"]:
    """Returns a picture of a few objects, the input on the left, with what was found and the truth.

    Each row has one kind: views and renders where these were sampled, else what the network that
    trains makes of the true views.
    """
    truth = np.asarray(heldout.images)[:PICTURED]
    kinds = [("found", found.figures.images)]
    if found.sampled is not None:
        renders = found.sampled.reconstruction.rendering.rgb
        kinds = [("views", found.sampled.views), ("renders", renders)]

    rows, labels = [], []
    for i in range(truth.shape[0]):
        for name, images in (*kinds, ("truth", truth)):
            rows.append([truth[i, 0], *np.asarray(images)[i]])
            labels.append(name)
    columns = ["input", *(f"view {k}" for k in range(truth.shape[1]))]
    return grid(rows, labels, columns)
