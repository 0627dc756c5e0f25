"""The architecture, executable: a module imports from its own folder or from a floor below."""

import ast
import collections
import pathlib
import re

import pytest

FLOORS = [
    {"config", "types", "errors", "places", "caches"},
    {"edm", "geometry", "splat", "parallel", "files", "cli"},
    {"nn", "media"},
    {"metrics"},
    {"steps"},
    {"data", "weights"},
    {"meshing"},
    {"run", "evaluation", "sampling"},
    {"planning", "viewing"},
    {"commands"},
    {"__main__"},
]
ROOMS = {
    "data": [
        {"compiled"},
        {"orbits", "toys"},
        {"meshes", "views"},
        {"sources", "augmentation"},
        {"loader"},
    ],
    "weights": [
        {"checkpoint", "fetched", "storage"},
        {"streaming", "start", "completeness"},
        {"pytorch"},
        {"hub"},
    ],
}
"""The floors inside of rooms that have some."""

FLOOR = {name: level for level, names in enumerate(FLOORS) for name in names}
ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = ROOT / "o3d_jax"
TORCH = PACKAGE / "weights" / "pytorch"


def imported(path: pathlib.Path):
    """The modules of o3d_jax that a file imports, as parts of their names."""
    for node in ast.walk(ast.parse(path.read_text())):
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path}: relative import"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "o3d_jax":
            parts = (node.module or "").split(".")[1:]
            yield from ([*parts, alias.name] for alias in node.names)
        elif isinstance(node, ast.Import):
            names = [a.name.split(".") for a in node.names if a.name.startswith("o3d_jax.")]
            yield from (name[1:] for name in names)


def test_imports_only_go_down():
    files = [p for p in PACKAGE.rglob("*.py") if p.parent != PACKAGE or p.stem != "__init__"]
    assert len(files) > 30
    for path in files:
        here = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        for there, *_ in imported(path):
            assert FLOOR[there] < FLOOR[here] or there == here, f"{path}: {here} -> {there}"


@pytest.mark.parametrize("room", ROOMS)
def test_imports_only_go_down_inside_of_a_room(room):
    floor = {name: level for level, names in enumerate(ROOMS[room]) for name in names}
    inside = {path: path.relative_to(PACKAGE / room) for path in (PACKAGE / room).rglob("*.py")}
    where = {path: rest.parts[0].removesuffix(".py") for path, rest in inside.items()}
    assert set(where.values()) - {"__init__"} == set(floor)
    for path, here in where.items():
        for there in (parts[1] for parts in imported(path) if parts[0] == room):
            assert floor[there] < floor[here] or there == here, f"{path}: {here} -> {there}"


def top_packages(path: pathlib.Path) -> set[str]:
    """The packages that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_linen_lives_in_nn_only():
    linen = files_with(r"import flax\b|from flax(?!\.traverse_util)|\blinen\b")
    assert {path.split("/")[0] for path in linen} == {"nn"}


def test_torch_lives_in_the_converter_and_the_dump_script_only():
    for path in PACKAGE.rglob("*.py"):
        if path not in (TORCH / "rules.py", TORCH / "dump_script.py"):
            assert "torch" not in top_packages(path), path


def test_top_level_is_as_mandated():
    tracked = {p.name for p in ROOT.iterdir() if not p.name.startswith(".")}
    made_by_running = {"runs", "out", "build", "dist", "o3d_jax.egg-info", "__pycache__"}
    allowed = {"o3d_jax", "configs", "train.py", "sample.py", "tests", "pyproject.toml"}
    allowed |= {"README.md", "CHANGELOG.md", "LICENSE", "benchmarks", "docs", "examples"}
    assert tracked - made_by_running <= allowed


def files_with(pattern: str) -> set[str]:
    """The files of the package in which a pattern occurs."""
    files = (path for path in PACKAGE.rglob("*.py") if re.search(pattern, path.read_text()))
    return {path.relative_to(PACKAGE).as_posix() for path in files}


def test_what_there_is_one_of_is_written_once():
    """One decoder of pictures with its limits, one sRGB curve, one way to replace a file whole."""
    assert files_with(r"\bImage\.open\(") == {"files/images.py"}
    assert files_with(r"0\.0031308|0\.04045") == {"files/srgb.py"}
    assert files_with(r"\bos\.replace\(|\bos\.rename\(") == {"files/atomic.py"}
    # It moves a damaged checkpoint aside, which replaces nothing.
    assert files_with(r"\.rename\(") == {"run/checkpoints.py"}


SHARED_NAMES = {
    "COMPILED_IN": "has to stand in each file that compiles others into its functions",
    "blend_round": "of either backend, with one signature",
    "blend_round_backward": "of either backend, with one signature",
    "Kept": "what a module's own backward pass needs",
    "Gradients": "what a module's own backward pass gives",
    "Video": "the same type in both",
    "SelfAttention": "as the torch originals of the U-Net and of LGM call them",
    "DownBlock": "as the torch originals of the U-Net and of LGM call them",
    "MidBlock": "as the torch originals of the U-Net and of LGM call them",
    "UpBlock": "as the torch originals of the U-Net and of LGM call them",
}
"""Names that several modules may define, and why."""


def public_names(path: pathlib.Path) -> set[str]:
    """What a module defines at its top level for others; variables of types are for nobody."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign) and not ast.unparse(node.value).startswith("TypeVar("):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def test_a_public_name_stands_for_one_thing():
    where = collections.defaultdict(list)
    apart = {PACKAGE / "commands", PACKAGE / "__main__.py"}  # Nothing imports them.
    files = [p for p in sorted(PACKAGE.rglob("*.py")) if not apart & {p, *p.parents}]
    for path in files:
        for name in public_names(path) - SHARED_NAMES.keys():
            where[name].append(path.relative_to(PACKAGE).as_posix())
    assert {name: paths for name, paths in where.items() if len(paths) > 1} == {}
