"""What matplotlib is told to draw."""

from matplotlib.figure import Figure


def curves_in(monkeypatch):
    """The figures saved from now on: panels by title, in them points by the names in the legend."""
    saved, real = [], Figure.savefig

    def save(figure, path, **options):
        panels = {}
        for axes in figure.axes:
            names = [text.get_text() for text in axes.get_legend().get_texts()]
            lines = [([*map(int, x)], [*map(float, y)]) for x, y in map(points, axes.get_lines())]
            panels[axes.get_title()] = dict(zip(names, lines, strict=True))
        saved.append(panels)
        real(figure, path, **options)

    monkeypatch.setattr(Figure, "savefig", save)
    return saved


def points(line):
    return line.get_xdata(), line.get_ydata()
