"""What a run says of itself before its first step: enough to know later what ran where, and how."""

import dataclasses
import importlib.metadata
import math
import platform
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
from jax.sharding import Mesh

from o3d_jax.cli import Setting
from o3d_jax.config import Config
from o3d_jax.parallel.processes import ProcessInfo
from o3d_jax.weights.checkpoint import Weights

PACKAGE = Path(__file__).parents[1]
SHOWN_VERSIONS = ("o3d-jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")


class ProgramMemory(NamedTuple):
    """Bytes that a compiled program needs on one device."""

    arguments: int
    outputs: int
    temporaries: int
    aliased: int
    """Bytes of the outputs that take the place of arguments."""

    @property
    def total(self) -> int:
        """The most bytes that are held at once."""
        return self.arguments + self.outputs + self.temporaries - self.aliased


@runtime_checkable
class Analyzed(Protocol):
    """A compiled program, or several that run one after another."""

    def memory_analysis(self) -> Any:
        """Returns what XLA says of its memory."""
        ...


def program_memory(compiled: Analyzed) -> ProgramMemory | None:
    """Returns what the compiler says of a program's memory; None where it says nothing."""
    found = compiled.memory_analysis()
    if found is None:
        return None
    return ProgramMemory(
        arguments=found.argument_size_in_bytes,
        outputs=found.output_size_in_bytes,
        temporaries=found.temp_size_in_bytes,
        aliased=found.alias_size_in_bytes,
    )


def banner(
    config: Config,
    mesh: Mesh,
    weights: Weights,
    *,
    processes: Sequence[ProcessInfo] = (),
    memory: ProgramMemory | None = None,
    settings: Sequence[Setting] = (),
) -> str:
    """Returns the lines that a run begins with; `memory` is the train step's, if it is known."""
    blocks = [
        ("run", [f"{config.name}, {config.train.steps:,} steps"]),
        ("versions", _versions()),
        ("devices", [_devices(), *_processes(processes)]),
        ("mesh", [" x ".join(f"{name} {size}" for name, size in mesh.shape.items())]),
        ("batch", [_batch(config, mesh.size)]),
        ("state", [_sharing(config, mesh)]),
        ("memory", [_memory(memory)]),
        ("parameters", _parameters(weights)),
        ("compiled", [_cache()]),
        ("config", _settings(settings)),
    ]
    return "\n".join(
        f"{name if i == 0 else '':<12}{line}".rstrip()
        for name, lines in blocks
        for i, line in enumerate(lines)
    )


def _versions() -> list[str]:
    versions = [f"{name} {importlib.metadata.version(name)}" for name in SHOWN_VERSIONS]
    commit = git_commit(PACKAGE.parent)
    versions[0] += "" if commit is None else f" ({commit})"
    return [", ".join([*versions, f"python {platform.python_version()}"])]


def git_commit(folder: Path) -> str | None:
    """Returns the commit checked out in `folder`, and whether anything was changed since.

    None where the folder is no checkout of its own. A repository further up does not count: an
    environment may lie in one that is not ours.
    """
    if not (folder / ".git").exists():
        return None
    try:
        commit = _git(folder, "rev-parse", "--short=10", "HEAD")
        changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):  # No git, or one that refuses another's folder.
        return None
    return f"git {commit}, with changes" if changed else f"git {commit}"


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    return done.stdout.strip()


def _devices() -> str:
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    memory = f", {gib(stats['bytes_limit'])} each" if "bytes_limit" in stats else ""
    return f"{jax.device_count()} {device.platform} ({device.device_kind}){memory}"


def _processes(processes: Sequence[ProcessInfo]) -> list[str]:
    if len(processes) < 2:
        return []
    rows = [("process", "devices", "host")]
    rows += [(str(p.index), str(p.devices), p.host) for p in processes]
    return aligned_table(rows)


def _batch(config: Config, devices: int) -> str:
    objects = config.train.batch_size
    parts = config.train.accumulate
    split = "" if parts == 1 else f", in {parts} parts one after another"
    return (
        f"{objects} objects of {config.model.num_views} views a step, "
        f"{objects / devices:g} objects a device{split}"
    )


def _sharing(config: Config, mesh: Mesh) -> str:
    return f"ZeRO stage {config.train.zero}, shared by {mesh.shape.get('fsdp', 1)} devices"


def _memory(memory: ProgramMemory | None) -> str:
    if memory is None:
        return "of a step: not known"
    return (
        f"of a step, per device: {gib(memory.total)} = {gib(memory.arguments)} arguments + "
        f"{gib(memory.temporaries)} temporaries + {gib(memory.outputs)} outputs - "
        f"{gib(memory.aliased)} in the arguments' place"
    )


def _parameters(weights: Weights) -> list[str]:
    rows: list[tuple[str, ...]] = [("network", "trains", "frozen", "of which")]
    totals = [0, 0]
    for column, networks in enumerate((weights.params, weights.frozen)):
        for field in dataclasses.fields(networks):
            tree = getattr(networks, field.name)
            if tree is None:
                continue
            count = _count(tree)
            totals[column] += count
            cells = [f"{count:,}" if column == i else "" for i in range(2)]
            rows.append((field.name, *cells, _largest_parts(tree)))
    rows.append(("all", *(f"{total:,}" for total in totals), ""))
    return aligned_table(rows)


def _count(tree: Any) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _largest_parts(tree: Any, most: int = 4) -> str:
    """Returns the largest children of a network; those whose names differ in numbers are one."""
    children = tree.get("params", tree) if isinstance(tree, dict) else {}
    counts: dict[str, int] = {}
    for name, child in children.items():
        kind = re.sub(r"_?\d+", "*", name)
        counts[kind] = counts.get(kind, 0) + _count(child)
    largest = sorted(counts.items(), key=lambda item: -item[1])
    shown = ", ".join(f"{name} {count:,}" for name, count in largest[:most])
    return shown + (", ..." if len(largest) > most else "")


def _cache() -> str:
    folder = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    return "programs are not kept" if folder is None else f"programs are kept in {folder}"


def _settings(settings: Sequence[Setting]) -> list[str]:
    rest = "all else, as in config.json, is default"
    return [*aligned_table([("field", "value", "from"), *settings]), rest] if settings else [rest]


def aligned_table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns the rows as lines in which columns begin below each other."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def gib(count: int) -> str:
    """Returns bytes for people to read: in GiB, or below one in MiB."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"
