"""`python -m studies.learn.figures RUNS --out FILE`: sums up the runs of a part: a table, a chart, and figures as JSON.

Means over seeds with their standard errors; each variant is also compared with the baseline seed by seed, since the
runs of one seed see the same records in the same order.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import matplotlib as mpl
from matplotlib.figure import Figure

from diffusionvl.commands.command_line import Parser, markdown
from diffusionvl.drawing.charts import chart_style
from diffusionvl.modeling.errors import UserError
from studies.learn.variants import BASELINE

BASE_FILE = "base.json"
UNITS = {"short": "short accuracy", "long": "long exact match", "agreement": "answers equal to the base's"}


class Estimate(NamedTuple):
    """A mean over seeds and its standard error, which one seed does not have."""

    mean: float
    error: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> "Estimate":
        """The estimate from one value a seed."""
        return cls(mean(values), stdev(values) / len(values) ** 0.5 if len(values) > 1 else None)

    def percent(self, sign: str = "") -> str:
        """In per cent, such as `97.3 ± 0.4`."""
        return f"{100 * self.mean:{sign}.1f}" + ("" if self.error is None else f" ± {100 * self.error:.1f}")

    def number(self) -> str:
        """As it is, such as `0.131 ± 0.002`."""
        return f"{self.mean:.3f}" + ("" if self.error is None else f" ± {self.error:.3f}")


Runs = dict[str, dict[int, dict[str, Any]]]  # by variant and seed


def read_runs(folder: Path) -> Runs:
    """Reads the runs that a part has made so far.

    Raises:
        UserError: There are none.
    """
    runs: Runs = {}
    for path in sorted(folder.glob("*-[0-9]*.json")):
        run = json.loads(path.read_text(encoding="utf-8"))
        if "variant" not in run:  # figures that were written here
            continue
        runs.setdefault(run["variant"], {})[run["seed"]] = run
    if not runs:
        raise UserError(f"{folder} holds no runs; make some with `python -m studies.learn`")
    return runs


def decoded(runs: Runs, *ways: str) -> Runs:
    """The runs that have been decoded in all of some ways at their end; older ones have fewer."""
    kept = {
        variant: {seed: run for seed, run in own.items() if {*ways} <= {*run["curve"][-1]}}
        for variant, own in runs.items()
    }
    return {variant: own for variant, own in kept.items() if own}


def estimates(runs: dict[int, dict[str, Any]], way: str, point: int = -1) -> dict[str, Estimate]:
    """What one variant reached with one way to decode, at one point of its curve."""
    found = [run["curve"][point][way] for run in runs.values()]
    return {name: Estimate.of([one[name] for one in found]) for name in found[0]}


def differences(runs: Runs, variant: str, way: str, name: str) -> Estimate | None:
    """How far a variant is from the baseline, in pairs of runs of one seed; None without a pair."""
    base, own = runs.get(BASELINE, {}), runs[variant]
    values = [[side[seed]["curve"][-1][way][name] for side in (own, base)] for seed in own.keys() & base.keys()]
    return Estimate.of([ours - theirs for ours, theirs in values]) if values else None


def by_quality(runs: Runs, way: str, name: str) -> list[str]:
    """The variants, the one that reached most first."""
    return sorted(runs, key=lambda one: -estimates(runs[one], way)[name].mean)


def table(runs: Runs, way: str) -> str:
    """Writes what each variant reached at the end of its runs with one way to decode, in Markdown."""
    names = [name for name in next(iter(next(iter(runs.values())).values()))["curve"][-1][way] if name in UNITS]
    wanted = names[-1]  # the one in which variants differ
    header = ["", "seeds", *(f"{UNITS[name]}, %" for name in names), "against the baseline", "forwards/token"]
    rows = []
    for variant in by_quality(runs, way, wanted):
        found, change = estimates(runs[variant], way), differences(runs, variant, way, wanted)
        rows.append(
            [
                variant,
                str(len(runs[variant])),
                *(found[name].percent() for name in names),
                "" if variant == BASELINE or change is None else change.percent("+"),
                found["forwards_per_token"].number(),
            ]
        )
    return markdown(header, rows)


def other_ways(runs: Runs) -> str:
    """Writes what causal variants reach by the clean stream: autoregressive and speculative decoding, in Markdown."""
    rows = []
    for variant, own in decoded(runs, "autoregressive", "speculative").items():
        plain, drafted = (estimates(own, way) for way in ("autoregressive", "speculative"))
        units = [plain[name].percent() for name in UNITS if name in plain]
        rows.append([variant, str(len(own)), *units, drafted["forwards_per_token"].number()])
    if not rows:
        return "no variant has a causal clean stream"
    names = [name for name in UNITS if name in plain]
    return markdown(["", "seeds", *(f"{UNITS[name]}, %" for name in names), "forwards/token, speculative"], rows)


def draw(runs: Runs, base: dict[str, float], path: Path) -> None:
    """Draws the curves of all variants, with standard errors, as SVG; the AR base's quality is a dashed line."""
    name = "long" if "long" in base else "agreement"
    with mpl.rc_context({**chart_style(), "lines.linewidth": 1.2}):
        figure = Figure(figsize=(10, 4.2), layout="constrained")
        quality, cost = figure.subplots(1, 2)
        for number, variant in enumerate(by_quality(runs, "denoise", name)):
            own = runs[variant]
            steps = [one["step"] for one in next(iter(own.values()))["curve"]]
            points = [estimates(own, "denoise", point) for point in range(len(steps))]
            style = {"color": f"C{number % 10}", "fmt": "os^D"[number // 10] + "-", "capsize": 2, "label": variant}
            for axes, key, scale in ((quality, name, 100), (cost, "forwards_per_token", 1)):
                values = [scale * one[key].mean for one in points]
                axes.errorbar(steps, values, [scale * (one[key].error or 0) for one in points], **style)
        quality.axhline(100 * base[name], linestyle="--", linewidth=1, color="gray")
        quality.set(xlabel="optimizer step", ylabel=f"{UNITS[name]} (%)")
        cost.set(xlabel="optimizer step", ylabel="forwards per token", ylim=(0, None))
        figure.legend(*quality.get_legend_handles_labels(), loc="outside right upper", fontsize=8)
        figure.savefig(path, metadata={"Date": None})


def main(argv: list[str] | None = None) -> int:
    """Sums up.

    Returns:
        0, or 2 for an input that cannot be used.
    """
    parser = Parser(prog="python -m studies.learn.figures", description="Sum up the runs of `python -m studies.learn`.")
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--out", type=Path, required=True, help="file for the figures, .json; the chart is .svg")
    return parser.run(_sum_up, argv)


def _sum_up(arguments: argparse.Namespace) -> None:
    """Writes the figures and the chart, and prints the tables."""
    if arguments.out.suffix != ".json":
        raise UserError(f"--out {arguments.out}: give a name that ends in .json; the chart stands beside it")
    runs = read_runs(arguments.runs)
    base = json.loads((arguments.runs / BASE_FILE).read_text(encoding="utf-8"))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    flat = [run for own in runs.values() for run in own.values()]
    arguments.out.write_text(json.dumps({"base": base, "runs": flat}, indent=1) + "\n", encoding="utf-8")
    draw(runs, base, arguments.out.with_suffix(".svg"))
    print(f"the AR base: {base}")
    for remasking, way in (("dynamic", "denoise"), ("static", "static")):
        if found := decoded(runs, way):
            print(f"\nBy {remasking} remasking:\n\n{table(found, way)}")
    print(f"\nBy the clean stream:\n\n{other_ways(runs)}")


if __name__ == "__main__":
    sys.exit(main())
