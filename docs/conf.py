"""How Sphinx builds the documentation: `sphinx-build -W docs build/docs`.

Nothing is downloaded. Pages with code are run, on two cores in about a minute. The references of
commands and of the library are written anew by every build, from what the code says of itself.
"""

import os
import sys
import typing
from importlib.metadata import version as version_of
from pathlib import Path

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent), str(HERE)]
os.environ["PYTHONPATH"] = str(HERE.parent)  # For the kernels that run the pages.

typing.GENERATING_DOCUMENTATION = "o3d_jax"  # pyright: ignore  jaxtyping then writes `Array`.
import reference  # noqa: E402  It lies beside this file.

project = "o3d_jax"
author = "the authors of o3d_jax"
release = version_of("o3d-jax")
extensions = ["myst_nb", "sphinx.ext.autodoc"]

html_theme = "sphinx_book_theme"
html_title = "o3d_jax"
html_static_path = ["static"]
html_css_files = ["pictures.css"]
html_theme_options = {"show_navbar_depth": 1, "home_page_in_toc": True}
html_math_renderer = "mathml"
html_show_sphinx = False
html_copy_source = False

myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
nb_execution_mode = "cache"  # A page runs again when its code has changed.
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
nb_merge_streams = True
exclude_patterns = ["static", "**.ipynb_checkpoints"]

toc_object_entries = False  # Thousands of them, in the sidebar of every page.
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
highlight_language = "none"
default_role = "code"
suppress_warnings = ["ref.python"]  # Fields of many classes are called `bytes` or `colors`.


def visit_math(translator: HTML5Translator, node: nodes.math | nodes.math_block) -> None:
    """Writes a formula as MathML, which browsers draw without a script from elsewhere."""
    is_block = isinstance(node, nodes.math_block)
    formula = convert(node.astext(), display="block" if is_block else "inline")
    translator.body.append(f'<div class="formula">{formula}</div>' if is_block else formula)
    raise nodes.SkipNode


def as_pages_of_this_site(app: Sphinx, page: str, source: list[str]) -> None:
    """Leads links to files of the repository to their copies (`reference.COPIES`), in place."""
    for there, here in reference.COPIES.items():
        source[0] = source[0].replace(f"](../{there}", f"](/{here}")


def setup(app: Sphinx) -> None:
    """Hooks into Sphinx what has no setting."""
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math, None))
    app.connect("builder-inited", lambda app: reference.write_pages(HERE))
    app.connect("source-read", as_pages_of_this_site)
    app.connect("autodoc-process-docstring", reference.as_restructured_text)
