"""Strict settings for every test, eight virtual devices, and systems that are quick to compile.

The package is imported inside fixtures only: pytest's shape checks must come first.
"""

import gc
import hashlib
import os
import runpy
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache

ROOT = Path(__file__).parents[1]
# Numba looks for changes in a function's own file, and not in those of others that it calls. Here
# what it compiles is kept by the text of them all, so that no test runs the code of before.
DRAWING = sorted((ROOT / "o3d_jax" / "data").glob("*/*.py"))
DRAWN_BY = hashlib.sha256(b"".join(path.read_bytes() for path in DRAWING)).hexdigest()[:12]
os.environ["NUMBA_CACHE_DIR"] = str(ROOT / ".cache" / "numba" / DRAWN_BY)

jax.config.update("jax_numpy_rank_promotion", "raise")  # (b,) + (b, h) is always a mistake here.
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_num_cpu_devices", 8)


@pytest.fixture(scope="module")
def quick_compilation():
    """Most optimizations off: half the time to compile, and tests run each program a few times."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.fixture(autouse=True)
def no_cache_is_left_on():
    """Commands switch on the cache of compiled programs, which is the whole process's.

    It would keep the kernels' interpreter, too, whose callbacks JAX 0.10 crashes on.
    """
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    if before != {name: getattr(jax.config, name) for name in names}:
        for name, value in before.items():
            jax.config.update(name, value)
        compilation_cache.reset_cache()  # It goes on otherwise.


MOST_MAPS = 20_000
"""Of 65,530 that Linux lets a process have; a large program that is compiled takes thousands."""


@pytest.fixture(scope="module", autouse=True)
def programs_are_forgotten_before_there_are_too_many():
    """XLA crashes where it may map no more memory, which many compiled programs lead to."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > MOST_MAPS:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def tiny():
    """The configuration of test size: 16 px, 4 views."""
    return runpy.run_path(str(ROOT / "configs" / "tiny.py"))["config"]


@pytest.fixture(scope="session")
def toy(tiny):
    """The tiny configuration with toy networks (see `support/toy_networks.py`)."""
    from support.toy_networks import toy_system

    return toy_system(tiny)


@pytest.fixture(scope="session")
def batch(tiny):
    """Three objects: not as many as views."""
    from support.toy_networks import random_batch

    return random_batch(tiny, 3)
