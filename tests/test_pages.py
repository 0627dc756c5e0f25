"""How the package reads, as far as a program can tell: the bars of `benchmarks/pages.py`.

It can tell whether there are paragraphs and comments, not whether they are worth reading.
"""

import collections
import re

import pytest

from benchmarks import pages

MOST_LINES = 420
LONG_FOR_A_REASON = {"o3d_jax/config.py"}
"""Files that say in their first lines why they are longer."""
HOMES = (pages.ROOT, pages.ROOT / "o3d_jax")


@pytest.fixture(scope="module")
def figures():
    return pages.measure()


def page_of(text):
    return pages.Page(pages.Path("page.py"), text)


def test_long_bodies_have_paragraphs_and_comments(figures):
    assert figures.bodies > 100  # So there is something to measure.
    assert figures.solid_share < 0.15, "\n".join(map(str, figures.solid))
    assert figures.comments_per_100 > 5


def test_functions_outside_of_kernels_have_at_most_six_parameters(figures):
    assert [where for count, where in figures.parameters if count > 6] == []


def test_no_docstring_begins_in_the_middle_of_a_sentence(figures):
    assert figures.of == []


def test_files_end_before_one_loses_sight_of_their_beginning():
    long = [page for page in pages.read_pages(pages.ROOT) if len(page.lines) > MOST_LINES]
    assert {str(page.path) for page in long} == LONG_FOR_A_REASON
    for page in long:
        assert "longer than" in page.text[:700]


def test_no_folder_is_a_bag(figures):
    assert max(figures.folders.values()) <= 16, figures.folders


def test_words_are_spelled_as_in_the_papers_field():
    """American: one spelling is one search."""
    british = ("colour", "centre", "normalis", "initialis", "rasteris", "neighbour", "summaris")
    british += ("minimis", "standardis", "grey", "behaviour", "licence", "towards")
    found = collections.Counter(
        f"{page.path}: {word}"
        for page in pages.read_pages(pages.ROOT)
        for word in british
        if word in page.text.lower()
    )
    assert not found


def test_a_body_is_measured_from_its_first_comment_to_its_last_line():
    lines = [f"    x{i} = {i}" for i in range(25)]
    lines[10:10] = ["", "    # Why."]
    (body,) = pages.long_bodies(
        page_of("def f():\n    '''Doc.'''\n    # Before.\n" + "\n".join(lines))
    )
    assert (len(body.lines), body.comments, body.has_paragraphs) == (28, 2, True)
    (solid,) = pages.long_bodies(
        page_of("def f():\n    '''A.\n\n    B.'''\n" + "    x = 1  # y\n" * 20)
    )
    assert (len(solid.lines), solid.comments, solid.has_paragraphs) == (20, 0, False)
    assert not list(pages.long_bodies(page_of("def f():\n" + "    x = 1\n" * 19)))


def test_parameters_are_those_that_a_caller_thinks_of():
    text = "class C:\n    def f(self, a, /, b, *c, d=1, **e):\n        def g(x): pass\n"
    found = {f.name: pages.parameters(f) for f in pages.functions(page_of(text))}
    assert found == {"f": 5, "g": 1}


def test_docstrings_of_fields_count_too():
    text = "class C:\n    a: int\n    '''Of one.'''\nb = 2\n'''Two.'''\n'no' + 'ne'\n"
    assert [words for _, words in pages.docstrings(page_of(text))] == ["Two.", "Of one."]


def test_the_way_through_the_code_names_files_that_are_there():
    page = (pages.ROOT / "docs" / "design.md").read_text()
    named = set(re.findall(r"`([a-z_]+/[a-z_/]+\.py)`", page))
    assert len(named) > 30
    gone = [name for name in sorted(named) if not any((home / name).is_file() for home in HOMES)]
    assert not gone, f"docs/design.md names {', '.join(gone)}"
