import jax
import numpy as np
import pytest


@pytest.fixture
def float64():
    jax.config.update("jax_enable_x64", True)
    yield np.float64
    jax.config.update("jax_enable_x64", False)
