"""Results for people and programs: a table, JSON, and a page with plots that needs nothing but a browser."""

from __future__ import annotations

import html
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from discovery.errors import InvalidInputError
from discovery.evaluation.compare import Comparison
from discovery.evaluation.cost import Cost
from discovery.evaluation.results import Metric, Result


def show(
    result: Result,
    *,
    as_json: bool = False,
    out: Path | None = None,
    page: Path | None = None,
    headline: Mapping[str, Any] | None = None,
) -> None:
    """Print a result, and write its JSON to `out` and its page to `page` if they are given.

    A `headline` is what most readers of the JSON want; the whole result is then its last value.
    """
    content = result.to_dict() if headline is None else {**headline, "result": result.to_dict()}
    text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
    if out is not None:
        _write(out, text + "\n")
    if page is not None:
        _write(page, to_html(result))
    if as_json:
        print(text)
        return
    console = Console()
    table = Table(title=result.protocol, title_justify="left")
    for name in ("metric", "value", "95 %", "n", ""):
        table.add_column(name, overflow="fold")
    for metric in result.metrics:
        table.add_row(metric.name, _number(metric.value), _interval(metric), str(metric.n), metric.note)
    console.print(table)
    for outcome, count in _fates({"": result}).items():
        console.print(f"{count['']:6d}  {outcome}", highlight=False)
    console.print(f"{len(result.outcomes):6d}  requested", highlight=False)
    console.print(_cost_table({"": result}))
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
    console.print(f"stages: {stages}", highlight=False)
    for role, found in result.corrections.items():
        if found:
            console.print(f"corrections: {_n_corrected(found)} of {role}, listed in the JSON", highlight=False)
    console.print(_hashes(result), highlight=False, soft_wrap=True)


def show_comparison(
    comparison: Comparison, *, as_json: bool = False, out: Path | None = None, page: Path | None = None
) -> None:
    """Print all generators side by side, and write the JSON to `out` and the page to `page` if they are given."""
    text = json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False, default=str)
    if out is not None:
        _write(out, text + "\n")
    if page is not None:
        _write(page, comparison_to_html(comparison))
    if as_json:
        print(text)
        return
    console = Console()
    table = Table(title=_title(comparison), title_justify="left")
    table.add_column("metric")
    for name in comparison.results:
        table.add_column(name)
    for metric, cells in _compared(comparison):
        table.add_row(metric, *cells)
    console.print(table)
    console.print(_cost_table(comparison.results))
    fates = Table(title="what became of the samples", title_justify="left")
    for name in ("", *comparison.results):
        fates.add_column(name, overflow="fold")
    for outcome, counts in _fates(comparison.results).items():
        fates.add_row(outcome, *(str(counts[name]) for name in comparison.results))
    fates.add_row("requested", *(str(len(result.outcomes)) for result in comparison.results.values()))
    console.print(fates)
    first = next(iter(comparison.results.values()))
    console.print(_hashes(first, protocol_hash=comparison.protocol_hash, but="generated"), highlight=False)


def to_html(result: Result) -> str:
    """Return a page with metrics, the fate of all structures, costs, and plots of the distributions."""
    metrics = [
        (metric.name, _number(metric.value), _interval(metric), str(metric.n), metric.note) for metric in result.metrics
    ]
    plots = "".join(_plot(title, series) for title, series in result.distributions.items())
    return _page(
        result.protocol,
        f"<p>{len(result.outcomes)} structures requested.</p>"
        + _html_table(("metric", "value", "95 %", "n", ""), metrics)
        + "<h2>What became of them</h2>"
        + _html_fates({"": result})
        + (f"<h2>Distributions</h2>{plots}" if plots else "")
        + "<h2>Cost</h2>"
        + _html_costs({"": result})
        + _html_provenance(result, result.protocol_hash),
    )


def comparison_to_html(comparison: Comparison) -> str:
    """Return a page that shows the generators of a comparison side by side."""
    results = comparison.results
    distributions: dict[str, dict[str, Sequence[float]]] = {}
    for name, result in results.items():
        for title, series in result.distributions.items():
            distributions.setdefault(title, {})[name] = [value for values in series.values() for value in values]
    targets = ", ".join(target.label for target in comparison.targets)
    return _page(
        "Generators at equal budget",
        f"<p>{html.escape(_title(comparison))}: {html.escape(targets)}</p>"
        + _html_table(("metric", *results), [(metric, *cells) for metric, cells in _compared(comparison)])
        + "".join(_plot(title, series) for title, series in distributions.items())
        + "<h2>What became of the samples</h2>"
        + _html_fates(results)
        + "<h2>Cost</h2>"
        + _html_costs(results)
        + _html_provenance(next(iter(results.values())), comparison.protocol_hash, but="generated"),
    )


class Stages:
    """Bars on standard error, one for each stage, while an evaluation runs.

    Parameters
    ----------
    progress
        Where they are shown.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, TaskID] = {}
        self._totals: dict[str, int] = {}

    def expect(self, **totals: int) -> None:
        """Give the number of steps of stages that are to come."""
        self._totals |= totals

    def __call__(self, stage: str, steps: int = 1) -> None:
        """Advance the bar of a stage."""
        if stage not in self._tasks:
            self._tasks[stage] = self._progress.add_task(stage, total=self._totals.get(stage.split(": ")[-1]))
        self._progress.advance(self._tasks[stage], steps)


@contextmanager
def progress_bars() -> Iterator[Stages]:
    """Show bars while the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Stages(progress)


def _title(comparison: Comparison) -> str:
    n_samples = sum(target.n_samples for target in comparison.targets)
    budget = next(iter(comparison.results.values())).settings["budget"]
    limits = [f"{n_samples} samples"]
    limits += [f"{amount:g} {kind.replace('_', ' ')}" for kind, amount in budget.items() if amount is not None]
    return f"{len(comparison.targets)} compositions; each generator has {', '.join(limits)}"


def _compared(comparison: Comparison) -> Iterator[tuple[str, list[str]]]:
    """Yield the name of each metric with its value and interval for each generator."""
    names = dict.fromkeys(metric.name for result in comparison.results.values() for metric in result.metrics)
    for name in names:
        found = comparison.metric(name)
        yield name, [_with_interval(found[one]) if one in found else "–" for one in comparison.results]


def _with_interval(metric: Metric) -> str:
    return _number(metric.value) + (f" ({_interval(metric)})" if metric.interval is not None else "")


def _fates(results: Mapping[str, Result]) -> dict[str, dict[str, int]]:
    """Return outcome → result → number of structures, frequent ones first; many reasons of one kind as one."""
    total = sum((result.losses for result in results.values()), Counter[str]())
    n_reasons = Counter(outcome.partition(": ")[0] for outcome in total)
    found: dict[str, dict[str, int]] = {}
    for outcome, _ in total.most_common():
        kind = outcome.partition(": ")[0]
        shown = f"{kind}, for {n_reasons[kind]} reasons" if n_reasons[kind] > MAX_REASONS else outcome
        counts = found.setdefault(shown, dict.fromkeys(results, 0))
        for name, result in results.items():
            counts[name] += result.losses[outcome]
    return dict(sorted(found.items(), key=lambda item: -sum(item[1].values())))


MAX_REASONS = 6
"""Reasons of one kind, such as invalid, that are shown one by one; the JSON has them all."""


def _cost_rows(results: Mapping[str, Result]) -> Iterator[tuple[str, ...]]:
    """Yield what each cost is per, and the cells of all results."""
    for costs in zip(*(result.costs for result in results.values()), strict=True):
        if any(cost.n is not None for cost in costs):
            yield (f"per {costs[0].per}", *(_seconds(cost) for cost in costs), costs[0].note)


def _seconds(cost: Cost) -> str:
    if cost.seconds is None or cost.gpu_seconds is None:
        return "–, there is none"
    return f"{cost.seconds:.3g} s, {cost.gpu_seconds:.3g} GPU-s (n = {cost.n})"


def _cost_table(results: Mapping[str, Result]) -> Table:
    table = Table(title="cost", title_justify="left")
    for name in ("", *results, ""):
        table.add_column(name, overflow="fold")
    for row in _cost_rows(results):
        table.add_row(*row)
    return table


def _n_corrected(found: Mapping[str, Mapping[str, float]]) -> str:
    names = sorted({name for one in found.values() for name in one})
    return f"{len(found)} energies ({', '.join(names)})"


def _hashes(result: Result, *, protocol_hash: str | None = None, but: str = "") -> str:
    inputs = ", ".join(f"{role} {one.sha256[:12]}" for role, one in result.inputs.items() if role != but)
    return f"protocol {(protocol_hash or result.protocol_hash)[:12]}, {inputs}"


def _number(value: float | None) -> str:
    return "–" if value is None else f"{0.0 if abs(value) < SMALLEST_SHOWN else value:.4g}"


SMALLEST_SHOWN = 1e-9
"""Figures below it are rounding errors."""


def _interval(metric: Metric) -> str:
    return "" if metric.interval is None else " – ".join(map(_number, metric.interval))


STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2330; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; }
td, th { padding: .25rem .8rem; border-bottom: 1px solid #dde1e7; text-align: left; vertical-align: top; }
th { color: #5a6475; font-weight: 600; }
td { font-variant-numeric: tabular-nums; }
td:first-child { min-width: 11rem; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: #f5f6f8; padding: .8rem; border-radius: 4px; }
code { overflow-wrap: anywhere; }
@media (max-width: 40rem) { body { margin: 1rem auto; } td, th { padding: .25rem .4rem; } }
"""

COLOURS = ("#2a6fb0", "#d1742c", "#3a9160", "#8c5fb0", "#b0443c")


def _page(title: str, body: str) -> str:
    from plotly.offline import get_plotlyjs

    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body><h1>{html.escape(title)}</h1>"
        f"{body}</body></html>"
    )


def _html_table(header: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<div class='wide'><table><tr>{head}</tr>{body}</table></div>"


def _html_fates(results: Mapping[str, Result]) -> str:
    rows = [(outcome, *map(str, counts.values())) for outcome, counts in _fates(results).items()]
    rows.append(("requested", *(str(len(result.outcomes)) for result in results.values())))
    return _html_table(("", *results), rows)


def _html_costs(results: Mapping[str, Result]) -> str:
    return _html_table(("", *results, ""), _cost_rows(results))


def _html_provenance(result: Result, protocol_hash: str, *, but: str = "") -> str:
    settings = html.escape(json.dumps(dict(result.settings), indent=2, ensure_ascii=False, default=str))
    inputs = [(role, str(one.path), one.sha256) for role, one in result.inputs.items() if role != but]
    corrected = "".join(
        f"<p>Corrections in the energies of {html.escape(role)}: {html.escape(_n_corrected(found))}.</p>"
        for role, found in result.corrections.items()
        if found
    )
    return (
        f"<h2>Inputs</h2>{_html_table(('', 'path', 'SHA-256'), inputs)}{corrected}"
        f"<h2>Settings</h2><p>Protocol hash <code>{protocol_hash}</code></p><pre>{settings}</pre>"
    )


def _plot(title: str, series: Mapping[str, Sequence[float]]) -> str:
    """Return histograms with common bins; nothing if there are no values."""
    import plotly.graph_objects as go

    values = [value for one in series.values() for value in one]
    if not values:
        return ""
    axis, _, unit = title.partition(" (")
    width = (max(values) - min(values)) / 40 or 0.1
    figure = go.Figure(
        layout={
            "title": {"text": axis, "font": {"size": 16}},
            "xaxis": {"title": {"text": unit.rstrip(")") or axis}},
            "yaxis": {"title": {"text": "share"}},
            "barmode": "overlay",
            "height": 340,
            "margin": {"l": 60, "r": 20, "t": 50, "b": 60},
            "template": "simple_white",
            "showlegend": True,
            "legend": {"orientation": "h", "y": 1.12, "x": 1, "xanchor": "right"},
        }
    )
    for (name, one), colour in zip(series.items(), COLOURS * len(series), strict=False):
        figure.add_histogram(
            x=list(one),
            name=name,
            opacity=0.6,
            histnorm="probability",
            marker_color=colour,
            xbins={"start": min(values), "end": max(values) + width, "size": width},
        )
    return str(figure.to_html(full_html=False, include_plotlyjs=False, config={"responsive": True}))


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}; choose another file") from error
