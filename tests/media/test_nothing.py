import dataclasses
import re

import jax.numpy as jnp
import numpy as np
import pytest

from o3d_jax.errors import InputError
from o3d_jax.media.nothing import check_object
from o3d_jax.types import Gaussians

WHEN = "at noise level 2 of 3"
WHOLE = {"unet": {"a": np.ones(3), "b": np.ones(2)}, "lgm": {"c": np.ones(4)}}


def some(**changed):
    made = Gaussians(
        means=jnp.zeros((1, 5, 3)),
        scales=jnp.ones((1, 5, 3)),
        quats=jnp.ones((1, 5, 4)),
        opacities=jnp.full((1, 5), 0.004).at[0, 2].set(0.006),
        colors=jnp.ones((1, 5, 3)),
    )
    return dataclasses.replace(made, **changed)


def test_an_object_with_one_gaussian_that_shows_is_one():
    check_object(some(), WHEN, WHOLE)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("field", ["means", "scales", "quats", "opacities", "colors"])
def test_gaussians_that_are_not_finite_are_counted_and_the_weights_blamed_if_they_are(field, value):
    values = getattr(some(), field)
    broken = some(**{field: values.at[0, 1].set(value).at[0, 4].set(value)})
    with pytest.raises(InputError, match=f"^{WHEN}, 2 of 5 Gaussians .* though all weights"):
        check_object(broken, WHEN, WHOLE)
    damaged = {**WHOLE, "unet": {"a": np.array([1, value, 0]), "b": np.ones(2)}}
    halves = {**WHOLE, "unet": {"a": jnp.array([1, value, 0], jnp.bfloat16), "b": np.ones(2)}}
    for weights in (damaged, halves):
        with pytest.raises(InputError, match=re.escape("are not: unet (1 of 2 arrays); convert")):
            check_object(broken, WHEN, weights)


def test_gaussians_that_are_all_transparent_are_no_object():
    with pytest.raises(InputError, match="none has an opacity of 0.005, the highest is 0.004; "):
        check_object(some(opacities=jnp.full((1, 5), 0.004)), WHEN, WHOLE)
