"""Whether there is anything to show in an object: what is not finite or all clear is no result."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from o3d_jax.errors import InputError
from o3d_jax.media.gaussians import MIN_OPACITY
from o3d_jax.types import Gaussians


def check_object(gaussians: Gaussians, when: str, parts: Mapping[str, Any]) -> None:
    """Refuses an object that cannot be shown; `when` begins the message.

    Raises:
        InputError: a Gaussian is not finite, or all are too transparent to be stored. Says why, as
            far as the model's weights, `parts`, tell.
    """
    # A Gaussian is bad if any one of its numbers is; all fields begin with the same axes.
    values = jax.tree.leaves(jax.tree.map(np.asarray, gaussians))
    count = int(np.prod(gaussians.opacities.shape))
    finite = [np.isfinite(a).reshape(count, -1).all(axis=1) for a in values]
    bad = count - int(np.logical_and.reduce(finite).sum())
    if bad:
        raise InputError(f"{when}, {bad} of {count} Gaussians are not finite{_why(parts)}")

    # The files leave out what is below MIN_OPACITY, so that such an object would be empty.
    most = float(np.asarray(gaussians.opacities).max(initial=0))
    if most < MIN_OPACITY:
        raise InputError(
            f"{when}, the object is transparent: of {count} Gaussians none has an opacity of "
            f"{MIN_OPACITY}, the highest is {most:.2g}; the model is hardly trained, or its LGM is "
            "that of another model; take another checkpoint, or train on"
        )


def _why(parts: Mapping[str, Any]) -> str:
    """Returns the end of the message: which networks' own weights are damaged, and what to do."""
    damaged = []
    for name, tree in parts.items():
        arrays = [np.asarray(a) for a in jax.tree.leaves(tree)]
        floats = [a for a in arrays if jnp.issubdtype(a.dtype, jnp.floating)]  # And bfloat16.
        bad = sum(not np.isfinite(a).all() for a in floats)
        if bad:
            damaged.append(f"{name} ({bad} of {len(arrays)} arrays)")
    if damaged:
        return (
            f", for weights of the model are not: {', '.join(damaged)}; convert or copy them anew, "
            "or take a checkpoint of before"
        )
    return (
        ", though all weights of the model are: its networks overflow; take a checkpoint of "
        "before, or train it with a lower --optim.learning-rate"
    )
