"""Ouroboros3D in JAX."""
