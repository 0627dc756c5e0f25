"""The picture of a training run: input | generated views | renders | truth."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from o3d_jax.config import Config
from o3d_jax.io.sheets import grid
from o3d_jax.nn.networks import Networks
from o3d_jax.steps.sample import generate
from o3d_jax.types import Batch


def evaluation_sheet(
    networks: Networks, config: Config, params: Any, frozen: Any, batch: Batch
) -> Float[np.ndarray, "h w 3"]:
    """Three rows an object: views, renders of its Gaussians, truth; the input on the left."""
    found = generate(
        networks,
        config,
        params,
        frozen,
        jnp.asarray(batch.images[:, 0]),
        jax.tree.map(jnp.asarray, batch.cameras),
        jax.random.key(0),  # The same noise at each evaluation, so that pictures compare.
    )
    views = np.asarray(found.views)
    renders = np.asarray(found.reconstruction.rendering.rgb)
    truth = np.asarray(batch.images)
    rows, labels = [], []
    for i in range(truth.shape[0]):
        for name, images in (("views", views), ("renders", renders), ("truth", truth)):
            rows.append([truth[i, 0], *images[i]])
            labels.append(name)
    columns = ["input", *(f"view {k}" for k in range(truth.shape[1]))]
    return grid(rows, labels, columns)
