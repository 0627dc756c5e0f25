"""Counts fresh pages that a repeated program of JAX gets, as `freed_memory.py keep|give`.

Prints the pages of its temporaries, and the fresh ones that each of ten calls got.
"""

import resource
import sys

import jax
import jax.numpy as jnp

from o3d_jax.parallel.host import keep_freed_memory

CALLS = 10

SETTLING = 30
"""Calls before: small blocks may come to lie where a large one was, some ten times."""


def main(kind):
    if kind == "keep":
        keep_freed_memory()

    @jax.jit
    def large(x):  # 64 MiB of temporaries: more than glibc ever keeps by itself.
        matrix = jnp.arange(2.0**24).reshape(2**12, 2**12) + x
        return (matrix @ jnp.ones(2**12)).sum()

    def fresh_pages():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    pages = large.lower(0.0).compile().memory_analysis().temp_size_in_bytes / resource.getpagesize()
    for i in range(SETTLING):
        large(float(i)).block_until_ready()
    before = fresh_pages()
    for i in range(CALLS):
        large(float(i)).block_until_ready()
    sys.stdout.write(f"{pages} {(fresh_pages() - before) / CALLS}\n")


main(sys.argv[1])
