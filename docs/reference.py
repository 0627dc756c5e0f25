"""Pages that others write: the references of commands and library, and the repository's tables.

The references are what the code says of itself; tables that lie elsewhere are copied.
"""

import contextlib
import importlib
import io
import os
import pkgutil
import re
from pathlib import Path
from types import ModuleType

from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring

import o3d_jax
from o3d_jax.__main__ import COMMANDS, main

ROOMS = {
    "types config errors places cli caches": "Values, settings, errors",
    "edm geometry splat metrics": "Formulas without networks",
    "nn": "Networks",
    "steps": "The method: Algorithms 1 and 2",
    "parallel": "Devices and processes",
    "data": "Objects to train on",
    "files media meshing": "Files, pictures and meshes",
    "weights": "Checkpoints and torch weights",
    "sampling viewing": "One object, level by level, and how it is shown",
    "run": "What a training run keeps",
    "evaluation planning": "Measuring and planning",
}
"""The pages of the library's reference: names of rooms or modules, and the page's title."""

APART = {"commands", "__main__", "assets"}
"""Rooms with a reference of their own, or none."""


TAKE_A_CONFIG = {"train", "plan"}
"""Commands whose options go on after the name of a config."""

COPIES = {"benchmarks/": "benchmarks/", "o3d_jax/PAPER.md": "paper.md"}
"""What is shown here too, by its place in the repository, and the place that it gets here."""

RESULTS = "\n```{toctree}\n:hidden:\n:glob:\nresults/*\n```\n"
"""Ends the page on what was measured: the pages with the figures."""


def write_pages(docs: Path) -> None:
    """Writes the pages, where they differ from what is there.

    Raises:
        ValueError: a room of the package is on no page.
    """
    rooms = {module.name for module in pkgutil.iter_modules(o3d_jax.__path__)}
    missing = rooms - {name for names in ROOMS for name in names.split()} - APART
    if missing:
        raise ValueError(f"{sorted(missing)} are on no page; name them in ROOMS of {__file__}")

    pages = {"commands.md": _commands_page()}
    for names, title in ROOMS.items():
        pages[f"api/{names.split()[0]}.rst"] = _library_page(title, names.split())
    root = docs.parent
    pages["paper.md"] = (root / "o3d_jax" / "PAPER.md").read_text()
    pages["benchmarks/README.md"] = (root / "benchmarks" / "README.md").read_text() + RESULTS
    for name, text in pages.items():
        _write(docs / name, text.encode())
    for old in set((docs / "api").glob("*.rst")) - {docs / name for name in pages}:
        old.unlink()
    for path in (root / "benchmarks" / "results").iterdir():
        _write(docs / "benchmarks" / "results" / path.name, path.read_bytes())


def _write(path: Path, content: bytes) -> None:
    """Writes a file unless it is there with this content: Sphinx would read it again."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.is_file() or path.read_bytes() != content:
        path.write_bytes(content)


def _commands_page() -> str:
    """What each command answers to `--help`."""
    parts = ["# Commands", "What each command says of itself, by `o3d COMMAND --help`."]
    for name, summary in COMMANDS.items():
        parts += [f"## o3d {name}", summary, _help(name)]
        if name in TAKE_A_CONFIG:
            parts += [f"With a config, as `o3d {name} nano --help`, its fields follow:"]
            parts += [_help(f"{name} nano")]
    return "\n\n".join(parts) + "\n"


def _help(words: str) -> str:
    """What `o3d WORDS --help` prints, in lines of 84 characters; paths as from the top."""
    printed = io.StringIO()
    os.environ["COLUMNS"] = "84"
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words.split(), "--help"])
    text = printed.getvalue().replace(f"{Path(o3d_jax.__file__).parents[1]}/", "")
    lines = (line.rstrip() for line in text.strip().splitlines())
    return "\n".join(["```text", *lines, "```"])


def _library_page(title: str, rooms: list[str]) -> str:
    """A page with all public modules of some rooms."""
    parts = [f"{title}\n{'=' * len(title)}"]
    for room in rooms:
        module = importlib.import_module(f"o3d_jax.{room}")
        inside = pkgutil.walk_packages(getattr(module, "__path__", []), f"{module.__name__}.")
        names = [found.name for found in inside if not found.name.endswith("_script")]
        parts += [_section(name) for name in [module.__name__, *names] if _has_something(name)]
    return "\n\n".join(parts) + "\n"


def _has_something(name: str) -> bool:
    """Whether there is more to say of a module than of those in it."""
    module = importlib.import_module(name)
    return not hasattr(module, "__path__") or bool(module.__doc__)


def _section(name: str) -> str:
    """The directives for one module. A package has no members: they stand in its modules."""
    module = importlib.import_module(name)
    _unwrap(module)
    members = "" if hasattr(module, "__path__") else "\n   :members:"
    return f"{name}\n{'-' * len(name)}\n\n.. automodule:: {name}{members}"


def _unwrap(module: ModuleType) -> None:
    """Puts the plain function in place of a compiled one, which hides its signature from Sphinx."""
    for name, value in list(vars(module).items()):
        inner = getattr(value, "__wrapped__", None)
        if inner is not None and getattr(inner, "__module__", None) == module.__name__:
            setattr(module, name, inner)


def as_restructured_text(
    app: Sphinx, what: str, name: str, value: object, options: object, lines: list[str]
) -> None:
    """Makes a docstring's plain text what Sphinx reads, in place.

    Code stands in single backticks there, indented blocks after a colon are shown as they are, and
    `*`, `|` and a closing `_` have no other meaning than their own.
    """
    if lines and lines[0].startswith("Alias for field number"):  # Python's, of named tuples.
        lines.clear()
    outside, *rest = re.split(r"(`+[^`]*`+)", "\n".join(lines))
    pieces = [_escaped(outside)]
    for code, after in zip(rest[::2], rest[1::2], strict=True):
        joint = "\\ " if re.match(r"\w", after) else ""  # `jax.Device`s
        pieces += [f"``{' '.join(code.strip('`').split())}``", joint, _escaped(after)]
    lines[:] = "".join(pieces).split("\n")
    for i, line in enumerate(lines[:-2]):
        before, after = _indent(line), _indent(lines[i + 2])
        if line.endswith(":") and not lines[i + 1].strip() and after > before:
            lines[i] = f"{line}:"
    if what not in ("attribute", "data"):  # There it would take a colon for the end of a type.
        lines[:] = GoogleDocstring(lines, Config(), app, what, name, value).lines()


def _escaped(text: str) -> str:
    """The text without what has a meaning of its own in reStructuredText."""
    return re.sub(r"([*|]|_(?!\w))", r"\\\1", text)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())
