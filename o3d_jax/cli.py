"""How all commands read their options, and a config with some fields replaced.

The commands themselves are listed in `__main__.py`, and lie in `commands/`.
"""

import contextlib
import dataclasses
import difflib
import io
import itertools
import os
import re
import runpy
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import tyro

from o3d_jax.caches import cache_folder
from o3d_jax.config import Config
from o3d_jax.errors import InputError
from o3d_jax.places import CONFIGS

Parsed = TypeVar("Parsed")


class Setting(NamedTuple):
    """A field of the config, and who chose its value."""

    field: str
    """Its name on the command line, `optim.learning-rate`."""
    value: str
    source: str
    """"default", the config file's path, or "command line"."""


class ExplainedConfig(NamedTuple):
    """A config, and where it has its values from."""

    config: Config
    settings: tuple[Setting, ...]
    """The fields that differ from `Config`'s defaults."""


def read_config(path: Path, overrides: list[str]) -> Config:
    """Returns the `config` of a Python file, with fields replaced by `--optim.learning-rate 3e-5`.

    `path` may also be the name of a bundled config, `nano`.

    Raises:
        InputError: no such file, no config in it, an unknown field, a value of another type,
            values that contradict each other, or a run folder that cannot be written to.
    """
    return explained_config(path, overrides).config


def explained_config(
    path: Path, overrides: list[str], program: str = "python train.py"
) -> ExplainedConfig:
    """Returns what `read_config` does, and where each value came from.

    `program` is how `--help` calls the command.

    Raises:
        InputError: as `read_config`.
    """
    file = bundled_or_own(path)
    in_file = config_in(file)
    config = parse(Config, overrides, default=in_file, prog=f"{program} {path}")
    _check_writable(config.folder)
    return ExplainedConfig(config, provenance(config, in_file, file))


def provenance(config: Config, in_file: Config, path: Path) -> tuple[Setting, ...]:
    """Returns the fields with another value than the default or the file has, and who chose it.

    `in_file` is what the file at `path` has, `config` what the command line made of it.
    """
    defaults = dict(_leaves(Config(name="_")))
    before = dict(_leaves(in_file))
    found = []
    for name, value in _leaves(config):
        if value != before[name]:
            found.append(Setting(name, repr(value), "command line"))
        elif name == "name" or value != defaults[name]:
            found.append(Setting(name, repr(value), str(path)))
    return tuple(found)


def _leaves(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields all options' names with their values."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(value):
            yield from _leaves(value, name + ".")
        else:
            yield name, str(value) if isinstance(value, Path) else value


def bundled_or_own(path: Path) -> Path:
    """Returns the config file of this path, or else the bundled one of this name (`nano`).

    Raises:
        InputError: there is neither; names the bundled ones, and the nearest if one is near.
    """
    if path.is_file():
        return path
    bundled = {file.stem: file for file in sorted(CONFIGS.glob("*.py"))}
    if str(path) in bundled:
        return bundled[str(path)]
    near = difflib.get_close_matches(path.stem, bundled, 1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise InputError(
        f"no config file {path}; give a Python file, or one of {', '.join(bundled)}{meant}"
    )


def config_in(path: Path) -> Config:
    """Returns the `config` that a Python file defines.

    Raises:
        InputError: there is none in it, or a mistake.
    """
    try:
        config = runpy.run_path(str(path)).get("config")
    except Exception as error:  # It is the user's program, and may fail in any way.
        what = str(error) or type(error).__name__
        raise InputError(f"{path}: {_with_nearest(' '.join(what.split()))}") from error
    if not isinstance(config, Config):
        raise InputError(f"{path} defines no `config = Config(...)`")
    return config


def _check_writable(folder: Path) -> None:
    """Raises an InputError if a run cannot write there: better now than after hours of training."""
    existing = next(p for p in (folder.absolute(), *folder.absolute().parents) if p.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        raise InputError(f"cannot write to {existing}; choose another --run-dir or --name")


def _with_nearest(message: str) -> str:
    """Returns Python's complaint, and the field that is nearest to the unknown one."""
    unknown = re.search(r"unexpected keyword argument '(\w+)'", message)
    if unknown is None:
        return message
    fields = {name.split(".")[-1].replace("-", "_") for name, _ in _leaves(Config(name="_"))}
    near = difflib.get_close_matches(unknown[1], sorted(fields), 1, 0.0)[0]
    return f"{message}; the nearest field is {near!r}"


def parse(kind: type[Parsed], arguments: list[str], **options: Any) -> Parsed:
    """Returns the arguments as tyro reads them; what is wrong is said in one line.

    Raises:
        InputError: an unknown option, or a value of another type.
    """
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, args=arguments, **options)
    except SystemExit as exit:
        if not exit.code:  # --help
            raise
        raise InputError(_one_line(complaint.getvalue())) from exit


def choice(choices: Collection[str], arguments: list[str], verb: str) -> str:
    """Returns the first argument, which says what a command is about: one of the choices.

    Raises:
        InputError: there is none, or it is none of the choices.
    """
    known = ", ".join(choices)
    if not arguments:
        raise InputError(f"nothing to {verb}; give one of these first: {known}")
    if arguments[0] not in choices:
        near = difflib.get_close_matches(arguments[0], choices, 1, 0.0)[0]
        raise InputError(
            f"cannot {verb} {arguments[0]!r}; give one of {known}; the nearest is {near!r}"
        )
    return arguments[0]


def _one_line(box: str) -> str:
    """Returns the message inside of the frame that tyro draws, and the options it suggests."""
    rules = "-\u2500\u2570\u256f"  # Hyphens where there is no UTF-8.
    inside = [line.strip(" \u2502") for line in box.splitlines()[1:]]
    bare = itertools.dropwhile(lambda line: not line.strip(rules), inside)
    message = " ".join(itertools.takewhile(lambda line: line.strip(rules), bare))
    options = [line for line in inside if line.startswith("--") and line.strip(rules)]
    # The end of the box's last sentence, "For full helptext, run ... --help", may be a line, too.
    options = [line for line in options if line != "--help"]
    meant = [option.split()[0].rstrip(",") for option in options]
    if meant and message.startswith("Unrecognized"):
        message += f"; did you mean {', '.join(dict.fromkeys(meant))}?"
    return message


def use_compilation_cache() -> None:
    """Keeps compiled programs between runs, in JAX_COMPILATION_CACHE_DIR or the user's cache."""
    chosen = jax.config.jax_compilation_cache_dir  # pyright: ignore[reportAttributeAccessIssue]
    if chosen is None or "://" not in chosen:  # Of a bucket, only JAX knows.
        folder = cache_folder("xla", Path(chosen) if chosen else None)
        jax.config.update("jax_compilation_cache_dir", folder and str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
