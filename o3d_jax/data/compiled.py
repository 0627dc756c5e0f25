"""How numba compiles what draws toys and meshes.

Between such a decorator and its function stands `no_type_check`, for test runs: numba cannot
compile what the shape checker wraps.
"""

from numba import njit

kernel = njit(cache=True, nogil=True, error_model="numpy")
"""Compiles a function, and keeps that on disk; threads run it side by side."""

inlined = njit(cache=True, nogil=True, error_model="numpy", inline="always")
"""Compiles a function into its callers: a call would cost as much as passing a dozen arrays."""
