"""One object's Gaussians between arrays and files: what the formats .ply and .splat share."""

import dataclasses
import os
import warnings
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from o3d_jax.errors import InputError
from o3d_jax.types import Gaussians

MIN_OPACITY = 0.005
"""Opacity below which a Gaussian is not worth storing (release, LGM's export)."""


@dataclasses.dataclass(frozen=True)
class Values:
    """The fields of `Gaussians` in float64, so that every machine writes the same bytes.

    On float32, numpy's log and exp differ from processor to processor in the last bit.
    """

    means: Float[np.ndarray, "n 3"]
    scales: Float[np.ndarray, "n 3"]
    quats: Float[np.ndarray, "n 4"]
    opacities: Float[np.ndarray, " n"]
    colors: Float[np.ndarray, "n 3"]


def values_to_store(
    gaussians: Gaussians, path: str | os.PathLike[str], min_opacity: float
) -> Values:
    """Returns the object's values, without the Gaussians of less than `min_opacity`.

    Raises:
        ValueError: more than one object, scales below 0, or values that are not finite in float32.
    """
    if gaussians.means.ndim != 2:
        raise ValueError(
            f"means of shape {gaussians.means.shape}: {path} holds one object, so give (n, 3)"
        )
    names = [field.name for field in dataclasses.fields(Values)]
    values = Values(**{name: np.asarray(getattr(gaussians, name), np.float64) for name in names})
    bad = int(_not_finite(values).sum())
    if bad:
        raise ValueError(
            f"{bad} of {len(gaussians.means)} Gaussians are not finite; {path} is not written"
        )
    if (values.scales < 0).any():
        raise ValueError(
            f"the least scale is {values.scales.min():.3g}; give standard deviations, at least "
            f"0; {path} is not written"
        )
    return _some(values, values.opacities >= min_opacity)


def gaussians_from(path: str | os.PathLike[str], values: Values, drop_bad: bool) -> Gaussians:
    """Returns the Gaussians that a file holds, in float32.

    Args:
        drop_bad: whether those with values that float32 cannot hold are left out, with a warning
            that says how many.

    Raises:
        InputError: there are such values, and they are not to be left out, or no others remain.
    """
    bad = _not_finite(values)
    if bad.any():
        there = f"{path}: {bad.sum()} of {len(bad)} Gaussians are not finite"
        if not drop_bad or bad.all():
            other = ", or read it with drop_bad=True (o3d mesh: --drop-bad)"
            raise InputError(f"{there}; export it anew{'' if bad.all() else other}")
        warnings.warn(f"{there}, and left out", stacklevel=3)
        values = _some(values, ~bad)
    return Gaussians(
        means=jnp.asarray(values.means, jnp.float32),
        scales=jnp.asarray(values.scales, jnp.float32),
        quats=jnp.asarray(values.quats, jnp.float32),
        opacities=jnp.asarray(values.opacities, jnp.float32),
        colors=jnp.asarray(values.colors, jnp.float32),
    )


def _some(values: Values, kept: Bool[np.ndarray, " n"]) -> Values:
    """Returns the values of those Gaussians alone that `kept` marks."""
    names = [field.name for field in dataclasses.fields(Values)]
    return Values(**{name: getattr(values, name)[kept] for name in names})


def _not_finite(values: Values) -> Bool[np.ndarray, " n"]:
    """Marks the Gaussians that have a value which float32 cannot hold."""
    rows = [values.means, values.scales, values.quats, values.opacities[:, None], values.colors]
    with np.errstate(over="ignore"):
        table = np.concatenate(rows, axis=-1).astype(np.float32)
    return np.asarray(~np.isfinite(table).all(axis=-1))


def file_content(path: str | os.PathLike[str]) -> bytes:
    """Returns all bytes of a file.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path") from error
