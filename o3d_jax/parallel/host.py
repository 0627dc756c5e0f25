"""What programs ask of the machine they run on: its cores as devices, and its memory."""

import ctypes
import importlib.metadata
import importlib.util
import os
import platform

import jax

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8
"""Parameters of glibc's mallopt(3)."""

GLIBC = "libc.so.6"
"""The name of glibc's library."""

MADV_HUGEPAGE = 14
"""Linux's madvise(2): large pages for this memory, where the system leaves that to programs."""

HEAP_SHARE = 0.5
"""The share of the machine's memory that the heap may get in large pages."""


def use_cpu_devices(count: int) -> None:
    """Makes so many devices of the processor's cores, of one thread each; 0 makes one of all cores.

    Several are faster: they wait for each other once a step, but the threads of one device in each
    of its loops. It must be called before JAX looks for devices, which it does once.
    """
    if count:
        jax.config.update("jax_num_cpu_devices", count)
        flags = os.environ.get("XLA_FLAGS", "")
        os.environ["XLA_FLAGS"] = f"{flags} --xla_cpu_multi_thread_eigen=false".strip()


def keep_freed_memory() -> None:
    """Lets XLA find memory again that it has freed, where its devices are CPUs.

    glibc gives large blocks back to the kernel, and each program of XLA frees all its temporaries
    at its end: so each step would get fresh pages, which the kernel clears, for a quarter of its
    time. One heap that never shrinks keeps them. It must be called before JAX starts its threads,
    which would have heaps of their own. It does nothing with accelerators, with another C library,
    or where another allocator is in the place of glibc's: jemalloc took the room that is asked for
    in large pages as freed memory to spread over, and a training grew until it was killed.
    """
    if not _is_cpu_only() or not _has_glibc() or _realloc_of(None) != _realloc_of(GLIBC):
        return
    libc = ctypes.CDLL(None)
    for parameter, value in ((M_ARENA_MAX, 1), (M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, -1)):
        libc.mallopt(parameter, value)
    _use_large_pages()


def _use_large_pages() -> None:
    """Asks Linux for pages of 2 MiB in the heap to come: a tenth less time for a training step.

    The heap grows once, to what it may need, and is told so as a whole; none of it is taken before
    it is used. Where the heap cannot grow so far, its pages stay as they are.
    """
    page = os.sysconf("SC_PAGESIZE")
    size = int(os.sysconf("SC_PHYS_PAGES") * HEAP_SHARE) * page
    libc = ctypes.CDLL(None)
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    start = libc.malloc(size)
    if start:
        first = -(-start // page) * page
        libc.madvise(first, size - (first - start), MADV_HUGEPAGE)
        libc.free(start)


def give_back_freed_memory() -> None:
    """Gives memory back to the kernel that was freed in the middle of heaps.

    glibc gives back only what is free at their ends, and each thread has a heap of its own: so a
    server would keep for good what its work once took. It does nothing with another C library.
    """
    if _has_glibc():
        ctypes.CDLL(None).malloc_trim(0)


def _realloc_of(library: str | None) -> int | None:
    """Returns where a library's realloc lies; for None, where that lies which this process calls.

    They differ where LD_PRELOAD or the program brings an allocator of its own. Some Pythons
    (Debian's) have an entry of their own for malloc and free, which would look like one.
    """
    return ctypes.cast(ctypes.CDLL(library).realloc, ctypes.c_void_p).value


def _has_glibc() -> bool:
    return platform.libc_ver()[0] == "glibc"


def _is_cpu_only() -> bool:
    """Returns whether JAX can find no other devices; asking JAX itself would start it."""
    platforms = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    if platforms:
        return platforms == "cpu"
    plugins = importlib.metadata.entry_points(group="jax_plugins")
    modules = ("jax_plugins", "libtpu")
    return not plugins and not any(importlib.util.find_spec(name) for name in modules)
