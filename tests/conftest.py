"""Strict settings for every test, and eight virtual devices."""

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")  # (b,) + (b, h) is always a mistake here.
jax.config.update("jax_debug_key_reuse", True)
jax.config.update("jax_num_cpu_devices", 8)
