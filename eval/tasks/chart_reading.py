"""A small chart-reading benchmark: bar, line and pie charts drawn by matplotlib, and questions about them.

Nothing here is ever trained on, so a model of the quickstart is expected to fail.
"""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from diffusionvl.data.sources.json_records import write_jsonl

KINDS = ("bar", "line", "pie")
# Of each subject: what is counted, and the names along the chart. Lines run over years.
SUBJECTS: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("Loaves sold", ("Rye", "Wheat", "Spelt", "Oat", "Corn", "Barley")),
    ("Visitors", ("Museum", "Zoo", "Castle", "Garden", "Theatre", "Harbour")),
    ("Trees planted", ("Oak", "Birch", "Maple", "Pine", "Beech", "Willow")),
    ("Books lent", ("Novels", "Poetry", "History", "Science", "Travel", "Comics")),
)
COLORS = ("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377")
SIZE, DPI = (4.0, 3.2), 100


@dataclass(frozen=True)
class Chart:
    """What a chart shows.

    Attributes:
        kind: One of KINDS.
        title: What is counted.
        names: Along the chart; years for a line.
        values: One a name, all different; of a pie, they sum to 100.
    """

    kind: str
    title: str
    names: tuple[str, ...]
    values: tuple[int, ...]


def make_chart(kind: str, rng: random.Random) -> Chart:
    """Draws a chart's subject and values."""
    title, known = rng.choice(SUBJECTS)
    count = rng.randint(4, 6)
    if kind == "pie":
        cuts = sorted(rng.sample(range(1, 20), count - 1))
        shares = [5 * (end - begin) for begin, end in zip([0, *cuts], [*cuts, 20], strict=True)]
        if len(set(shares)) < count:  # the largest and the smallest share must be one
            return make_chart(kind, rng)
        return Chart(kind, title, tuple(rng.sample(known, count)), tuple(shares))
    if kind == "line":
        first = rng.randint(2001, 2015)
        names = tuple(str(first + year) for year in range(count))
    else:
        names = tuple(rng.sample(known, count))
    return Chart(kind, title, names, tuple(rng.sample(range(10, 100), count)))


def questions(chart: Chart, rng: random.Random) -> list[tuple[str, str]]:
    """Three questions with their answers: a value to read off, an extreme, and one to compute."""
    title, share = chart.title.lower(), chart.kind == "pie"
    pairs = dict(zip(chart.names, chart.values, strict=True))
    name, other = rng.sample(chart.names, 2)
    place = "year" if chart.kind == "line" else "name"
    unit = "%" if share else ""
    most = rng.random() < 0.5
    extreme = (max if most else min)(pairs, key=lambda key: pairs[key])
    what = f"What per cent of {title} are" if share else f"What is the number of {title} for"
    return [
        (f"{what} {name}?", f"{pairs[name]}{unit}"),
        (f"Which {place} has the {'most' if most else 'fewest'} {title}?", extreme),
        (f"What is the sum of {title} for {name} and {other}?", f"{pairs[name] + pairs[other]}{unit}"),
    ]


def draw_chart(chart: Chart, path: Path) -> None:
    """Writes a chart as PNG, with every value readable."""
    with mpl.rc_context({"font.size": 10, "axes.grid": chart.kind == "line", "grid.alpha": 0.4}):
        figure = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        colors = COLORS[: len(chart.names)]
        if chart.kind == "bar":
            axes.bar_label(axes.bar(chart.names, chart.values, color=colors))
        elif chart.kind == "line":
            axes.plot(chart.names, chart.values, "o-", color=COLORS[0])
            for name, value in zip(chart.names, chart.values, strict=True):
                axes.annotate(str(value), (name, value), (0, 6), textcoords="offset points", ha="center")
            axes.margins(y=0.2)
        else:
            axes.pie(chart.values, labels=chart.names, colors=colors, autopct="%.0f%%")
        axes.set_title(chart.title)
        figure.savefig(path, metadata={"Software": None})


def write_benchmark(folder: Path, charts: int = 60, seed: int = 0) -> list[dict[str, Any]]:
    """Draws charts and writes `test.jsonl` with three questions about each.

    Args:
        folder: For `test.jsonl` and `images/`.
        charts: How many, a third of each kind.
        seed: The same seed gives the same questions, and the same pictures with the same matplotlib.

    Returns:
        The documents: question, answer, kind of chart, image relative to `folder`.
    """
    rng = random.Random(seed)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    documents = []
    for number in range(charts):
        chart = make_chart(KINDS[number % len(KINDS)], rng)
        image = f"images/{number}.png"
        draw_chart(chart, folder / image)
        for question, answer in questions(chart, rng):
            documents.append({"image": image, "kind": chart.kind, "question": question, "answer": answer})
    write_jsonl(documents, folder / "test.jsonl")
    return documents
