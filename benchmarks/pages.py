"""How readable the package's pages are, in figures: `python benchmarks/pages.py [CHECKOUT]`.

Reads the source of a checkout (this one by default; `git archive COMMIT | tar -x -C FOLDER` makes
one of any commit), runs nothing of it, and prints a table in Markdown. `--long` lists what stands
in the way of the bars that `tests/test_pages.py` holds.
"""

import argparse
import ast
import collections
import dataclasses
import functools
import io
import statistics
import tokenize
from collections.abc import Iterator
from pathlib import Path

LONG = 20
"""Lines from which on the body of a function is a text, and has paragraphs."""

Function = ast.FunctionDef | ast.AsyncFunctionDef
ROOT = Path(__file__).parents[1]


@dataclasses.dataclass(frozen=True)
class Page:
    """One source file."""

    path: Path
    """Below the checkout."""
    text: str

    @functools.cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text)

    @functools.cached_property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @functools.cached_property
    def comments(self) -> set[int]:
        """The numbers, from 1, of lines that are a comment and nothing else."""
        tokens = tokenize.generate_tokens(io.StringIO(self.text).readline)
        found = (token for token in tokens if token.type == tokenize.COMMENT)
        return {t.start[0] for t in found if t.line.lstrip().startswith("#")}


@dataclasses.dataclass(frozen=True)
class Body:
    """The statements of a function, without its docstring."""

    page: Page
    name: str
    lines: range
    """Their numbers, from 1."""

    @property
    def has_paragraphs(self) -> bool:
        return any(not self.page.lines[number - 1].strip() for number in self.lines)

    @property
    def comments(self) -> int:
        return len(self.page.comments & set(self.lines))

    def __str__(self) -> str:
        return f"{self.page.path}:{self.lines.start} {self.name} ({len(self.lines)} lines)"


def read_pages(checkout: Path) -> list[Page]:
    """The files of the package, and the two scripts beside it."""
    files = [*sorted((checkout / "o3d_jax").rglob("*.py"))]
    files += [checkout / name for name in ("train.py", "sample.py")]
    return [Page(path.relative_to(checkout), path.read_text()) for path in files]


def functions(page: Page) -> Iterator[Function]:
    """All functions of a page, methods and nested ones among them."""
    return (node for node in ast.walk(page.tree) if isinstance(node, Function))


def long_bodies(page: Page) -> Iterator[Body]:
    """Functions whose bodies have at least LONG lines; nested ones are part of their outer one."""

    def outermost(node: ast.AST) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, Function):
                yield child
            else:
                yield from outermost(child)

    for function in outermost(page.tree):
        statements = function.body[1:] if ast.get_docstring(function) else function.body
        if not statements:
            continue

        # Comments above the first statement belong to the body, too.
        start, end = statements[0].lineno, statements[-1].end_lineno or 0
        while start - 1 in page.comments:
            start -= 1
        if end - start + 1 >= LONG:
            yield Body(page, function.name, range(start, end + 1))


def parameters(function: Function) -> int:
    """How many a caller thinks of: all but `self` and `cls`."""
    given = function.args
    names = [a.arg for a in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [a.arg for a in (given.vararg, given.kwarg) if a is not None]
    return sum(name not in ("self", "cls") for name in names)


def docstrings(page: Page) -> Iterator[tuple[int, str]]:
    """All strings that stand as a statement, with their lines: also those of fields and values."""
    for node in ast.walk(page.tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            if isinstance(node.value.value, str):
                yield node.lineno, node.value.value


def public_names(page: Page) -> set[str]:
    """What a module defines at its top level for others; variables of types are for nobody."""
    found: set[str] = set()
    for node in page.tree.body:
        if isinstance(node, Function | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign) and "TypeVar(" not in ast.unparse(node.value):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def is_kernel(page: Page) -> bool:
    """Whether the functions of a page are called by Pallas, with a reference each."""
    return page.path.stem.endswith("pallas")


@dataclasses.dataclass(frozen=True)
class Figures:
    """What was measured."""

    folders: dict[str, int]
    """Modules by folder."""
    longest: tuple[int, str]
    """Lines of the longest file, and its name."""
    bodies: int
    solid: list[Body]
    """Long bodies without a blank line."""
    comments_per_100: float
    """Whole-line comments in 100 lines of long bodies."""
    parameters: list[tuple[int, str]]
    """By function, outside of Pallas kernels; rising."""
    of: list[str]
    """Where docstrings begin with "Of"."""
    duplicates: dict[str, int]
    """Public names, and in how many modules."""
    lines: int
    readme: int

    @property
    def solid_share(self) -> float:
        return len(self.solid) / self.bodies

    def table(self) -> str:
        folder, most = max(self.folders.items(), key=lambda item: item[1])
        counts = [count for count, _ in self.parameters]
        rows = {
            "modules in the fullest folder": f"{most} ({folder})",
            "folders, modules": f"{len(self.folders)}, {sum(self.folders.values())}",
            "lines of the longest file": f"{self.longest[0]} ({self.longest[1]})",
            f"bodies of {LONG} lines or more": f"{self.bodies}",
            "of these, without a blank line": f"{100 * self.solid_share:.1f} %",
            "whole-line comments in them, per 100 lines": f"{self.comments_per_100:.1f}",
            "parameters of a function, largest": f"{counts[-1]}",
            "parameters of a function, 95th percentile": f"{most_of(counts):g}",
            "functions of more than six parameters": f"{sum(count > 6 for count in counts)}",
            'docstrings that begin with "Of"': f"{len(self.of)}",
            "public names in more than one module": f"{len(self.duplicates)}",
            "lines of the package": f"{self.lines}",
            "lines of the README": f"{self.readme}",
        }
        width = max(map(len, rows))
        return "\n".join(f"| {name:{width}} | {value} |" for name, value in rows.items())


def most_of(counts: list[int]) -> float:
    """The 95th percentile."""
    return statistics.quantiles(counts, n=20)[-1]


def measure(checkout: Path = ROOT) -> Figures:
    """Returns the figures of a checkout."""
    pages = read_pages(checkout)
    bodies = [body for page in pages for body in long_bodies(page)]
    where = collections.Counter(
        name for page in pages if "commands" not in page.path.parts for name in public_names(page)
    )
    given = [
        (parameters(function), f"{page.path}:{function.lineno} {function.name}")
        for page in pages
        if not is_kernel(page)
        for function in functions(page)
    ]
    modules = (page for page in pages if page.path.stem != "__init__" and len(page.path.parts) > 1)
    return Figures(
        folders=dict(collections.Counter(page.path.parent.as_posix() for page in modules)),
        longest=max((len(page.lines), str(page.path)) for page in pages),
        bodies=len(bodies),
        solid=[body for body in bodies if not body.has_paragraphs],
        comments_per_100=100 * sum(b.comments for b in bodies) / sum(len(b.lines) for b in bodies),
        parameters=sorted(given),
        of=[
            f"{page.path}:{line} {text.splitlines()[0]}"
            for page in pages
            for line, text in docstrings(page)
            if text.split()[:1] == ["Of"]
        ],
        duplicates={name: count for name, count in where.items() if count > 1},
        lines=sum(len(page.lines) for page in pages),
        readme=len((checkout / "README.md").read_text().splitlines()),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__))
    parser.add_argument("checkout", nargs="?", type=Path, default=ROOT)
    parser.add_argument("--long", action="store_true", help="list what is in the way")
    arguments = parser.parse_args()
    figures = measure(arguments.checkout)
    print(figures.table())
    if arguments.long:
        print("\nwithout a blank line:", *figures.solid, sep="\n  ")
        print("\nOf:", *figures.of, sep="\n  ")
        many = (f"{count} {where}" for count, where in figures.parameters if count > 6)
        print("\nparameters:", *many, sep="\n  ")
        print("\nnames:", figures.duplicates)


if __name__ == "__main__":
    main()
