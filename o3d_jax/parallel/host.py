"""What a training asks of the machine it runs on, where its devices are the processor's cores."""

import ctypes
import platform

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Parameters of glibc's mallopt(3)."""


def use_cpu_devices(count: int) -> None:
    """Makes so many devices of the processor's cores; 0: one of all of them.

    Must come before JAX looks for devices, which it does once. Two devices of one thread each take
    a batch in less time than one device with two threads, which wait for each other in every loop.
    """
    if count:
        jax.config.update("jax_num_cpu_devices", count)


def keep_freed_memory() -> None:
    """Lets XLA find memory again that it has freed, where devices are CPUs.

    glibc gives large blocks back to the kernel, and every program of XLA frees all its temporaries
    at its end; so each step would be given fresh pages, which costs a quarter of its time. Does
    nothing elsewhere, or with another C library.
    """
    if jax.default_backend() != "cpu" or platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)
