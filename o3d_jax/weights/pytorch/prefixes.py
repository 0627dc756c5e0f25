"""Prefixes that torch's wrappers put before all names of a file: module., _orig_mod. and others."""

import dataclasses
from collections.abc import Collection

from o3d_jax.errors import InputError
from o3d_jax.weights.pytorch.safetensors import Source


def shared_prefix(names: Collection[str], wanted: Collection[str], outer: str) -> str:
    """Returns what all names begin with though most are wanted without it; else "".

    Args:
        wanted: names that a file of that kind has.
        outer: what names lack in a file that has a part of the network only.
    """
    known = {*wanted, *(name.removeprefix(outer) for name in wanted)}

    def fitting(prefix: str) -> int:
        return sum(name.removeprefix(prefix) in known for name in names)

    first = min(names, default="").split(".")
    prefixes = [".".join([*first[:count], ""]) for count in range(1, len(first))]
    shared = [p for p in prefixes if all(name.startswith(p) for name in names)]
    best = max(["", *shared], key=fitting)
    return best if 2 * fitting(best) > len(names) else ""


def without_prefix(sources: list[Source], prefix: str) -> list[Source]:
    """Returns the files; those whose names all begin with a prefix are without it.

    Raises:
        InputError: there is no such file.
    """
    prefix = prefix.rstrip(".") + "."
    prefixed = [all(t.spec.name.startswith(prefix) for t in source.tensors) for source in sources]
    if not any(prefixed):
        files = ", ".join(str(source.where) for source in sources)
        raise InputError(
            f"--strip-prefix {prefix}: in none of the files do all names begin with it ({files}); "
            "leave it out"
        )
    return [
        _stripped(source, prefix) if found else source
        for source, found in zip(sources, prefixed, strict=True)
    ]


def _stripped(source: Source, prefix: str) -> Source:
    tensors = tuple(
        dataclasses.replace(
            tensor,
            spec=dataclasses.replace(tensor.spec, name=tensor.spec.name.removeprefix(prefix)),
        )
        for tensor in source.tensors
    )
    return dataclasses.replace(source, tensors=tensors)
