"""README and docs: what they point to is there."""

import ast
import importlib
import pkgutil
import re
from pathlib import Path

import pytest

import o3d_jax
from o3d_jax.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
WRITTEN = {"commands.md", "paper.md", "api"}
"""Pages, and a folder of them, that a build writes into docs/ (docs/reference.py)."""

PAGES = [
    ROOT / "README.md",
    ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "benchmarks" / "results").glob("*.md")),
    *sorted(p for p in (ROOT / "docs").glob("*.md") if p.name not in WRITTEN),
]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_to_files_and_to_headings(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        if "://" in name or name.split("/")[0] in WRITTEN:
            continue
        path = page.parent / name if name else page
        assert path.exists(), target
        headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if heading else []
        slugs = {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}
        assert not heading or heading in slugs, target


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_that_are_shown_exist(page):
    shown = re.findall(r"^ *(?:\$ )?o3d ([a-z-]+)(?: ([a-z-]+))?", page.read_text(), re.MULTILINE)
    for words in shown:
        assert {words[0], " ".join(words)} & COMMANDS.keys(), words


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_files_and_names_of_the_package_exist(page):
    text = page.read_text()
    for path in re.findall(r"`((?:o3d_jax|tests|benchmarks|configs|examples)/[\w./-]*)`", text):
        assert "NAME" in path or (ROOT / path).exists(), path
    for module, names in re.findall(r"^from (o3d_jax[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{module}: {name}"


@pytest.mark.parametrize("page", ["README.md", "docs/evaluate.md"])
def test_the_quality_of_the_bundled_model_is_the_measured_one(page):
    measured = (ROOT / "benchmarks" / "results" / "quality.md").read_text()
    said = (ROOT / page).read_text()
    rows = {"nano": "nano", "[^|]*feedback zeroed[^|]*": "feedback zeroed at sampling"}
    for ours, theirs in rows.items():
        cells = re.findall(rf"^\| {theirs} \|(.+)", measured, re.MULTILINE)[0].split("|")
        views, renders = (f"{float(cells[i].split()[0]):.2f}" for i in (0, 2))
        (row,) = re.findall(rf"^\| {ours} \|(.+)", said, re.MULTILINE)
        assert re.findall(r"([0-9.]+) dB", row)[:2] == [views, renders]


def test_the_readme_is_a_door_and_no_manual():
    """What CI runs is in it; what takes longer to say has a page."""
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 120
    for mark in ("install-and-run", "test", "parity"):
        assert re.search(rf"^<!-- {mark} -->\n```bash\n.+\n```$", text, re.MULTILINE), mark
    for picture in re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text):
        assert (ROOT / picture).stat().st_size < 300_000, picture


def test_each_room_of_the_package_is_on_a_page_of_the_reference():
    code = ast.parse((ROOT / "docs" / "reference.py").read_text())
    values = {
        ast.unparse(node.targets[0]): node.value
        for node in code.body
        if isinstance(node, ast.Assign)
    }
    pages, apart = (ast.literal_eval(values[name]) for name in ("ROOMS", "APART"))
    rooms = {module.name for module in pkgutil.iter_modules(o3d_jax.__path__)}
    assert {name for names in pages for name in names.split()} == rooms - apart


def test_each_page_of_the_docs_is_in_the_table_of_the_readme():
    linked = set(re.findall(r"\]\(docs/(\w+\.md)", (ROOT / "README.md").read_text()))
    pages = {page.name for page in PAGES if page.parent == ROOT / "docs"}
    assert pages - linked == {"index.md"}
