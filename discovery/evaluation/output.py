"""Results for people and programs: a table, JSON, and a page with plots that needs nothing but a browser."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from discovery.errors import InvalidInputError
from discovery.evaluation.compare import COMPARED, Comparison
from discovery.evaluation.results import Metric, Result


def show(result: Result, *, as_json: bool = False, out: Path | None = None, page: Path | None = None) -> None:
    """Print a result, and write its JSON to `out` and its page to `page` if they are given."""
    text = json.dumps(result.to_dict(), indent=2, ensure_ascii=False, default=str)
    if out is not None:
        _write(out, text + "\n")
    if page is not None:
        _write(page, to_html(result))
    if as_json:
        print(text)
        return
    console = Console()
    console.print(_table(result))
    for outcome, count in result.losses.most_common():
        console.print(f"{count:6d}  {outcome}", highlight=False)
    console.print(f"{len(result.outcomes):6d}  requested", highlight=False)
    stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in result.seconds.items())
    console.print(stages, highlight=False)


def show_comparison(comparison: Comparison, *, as_json: bool = False, out: Path | None = None) -> None:
    """Print the metrics of all generators side by side, and write the JSON to `out` if it is given."""
    text = json.dumps(comparison.to_dict(), indent=2, ensure_ascii=False, default=str)
    if out is not None:
        _write(out, text + "\n")
    if as_json:
        print(text)
        return
    n_samples = sum(target.n_samples for target in comparison.targets)
    table = Table(
        title=f"{len(comparison.targets)} compositions, {n_samples} samples each generator", title_justify="left"
    )
    table.add_column("metric")
    for name in comparison.results:
        table.add_column(name)
    for metric in COMPARED:
        found = comparison.metric(metric).values()
        table.add_row(metric, *(f"{_number(one.value)}  ({_interval(one)})".replace("  ()", "") for one in found))
    for stage in ("sampling", "relaxation"):
        table.add_row(f"{stage} (s)", *(f"{result.seconds[stage]:.1f}" for result in comparison.results.values()))
    console = Console()
    console.print(table)
    for name, result in comparison.results.items():
        fates = ", ".join(f"{count} {outcome}" for outcome, count in result.losses.most_common())
        console.print(f"{name}: {len(result.outcomes)} requested = {fates}", highlight=False)


def to_html(result: Result) -> str:
    """Return a page with metrics, the fate of all structures, and plots of the distributions."""
    import plotly.graph_objects as go
    from plotly.offline import get_plotlyjs

    rows = "".join(
        f"<tr><td>{html.escape(metric.name)}</td><td>{_number(metric.value)}</td><td>{_interval(metric)}</td>"
        f"<td>{metric.n}</td><td>{html.escape(metric.note)}</td></tr>"
        for metric in result.metrics
    )
    fates = "".join(
        f"<tr><td>{html.escape(outcome)}</td><td>{count}</td></tr>" for outcome, count in result.losses.most_common()
    )
    inputs = "".join(
        f"<tr><td>{html.escape(role)}</td><td>{html.escape(str(one.path))}</td><td><code>{one.sha256[:16]}</code></td></tr>"
        for role, one in result.inputs.items()
    )
    plots = ""
    for title, series in result.distributions.items():
        figure = go.Figure(layout={"title": title, "barmode": "overlay", "height": 360, "template": "simple_white"})
        for name, values in series.items():
            figure.add_histogram(x=list(values), name=name, opacity=0.6, histnorm="probability", nbinsx=50)
        plots += figure.to_html(full_html=False, include_plotlyjs=False)
    settings = html.escape(json.dumps(dict(result.settings), indent=2, ensure_ascii=False, default=str))
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(result.protocol)}</title>"
        "<style>body{font:15px system-ui;max-width:60rem;margin:2rem auto;padding:0 1rem}"
        "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.2rem .8rem;border-bottom:1px solid #ddd;"
        "text-align:left}</style>"
        f"<script>{get_plotlyjs()}</script></head><body><h1>{html.escape(result.protocol)}</h1>"
        f"<p>{len(result.outcomes)} structures requested.</p>"
        f"<table><tr><th>metric</th><th>value</th><th>95 %</th><th>n</th><th></th></tr>{rows}</table>"
        f"<h2>What became of them</h2><table>{fates}</table>{plots}<h2>Inputs</h2><table>{inputs}</table>"
        f"<h2>Settings</h2><pre>{settings}</pre></body></html>"
    )


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Progress]:
    """Show a bar on standard error while the block runs; ``advance`` of its only task moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        bar.add_task(label, total=total)
        yield bar


def _table(result: Result) -> Table:
    table = Table(title=result.protocol, title_justify="left")
    for name in ("metric", "value", "95 %", "n", ""):
        table.add_column(name, overflow="fold")
    for metric in result.metrics:
        table.add_row(metric.name, _number(metric.value), _interval(metric), str(metric.n), metric.note)
    return table


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _interval(metric: Metric) -> str:
    return "" if metric.interval is None else f"{metric.interval[0]:.4g} – {metric.interval[1]:.4g}"


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise InvalidInputError(f"{path} cannot be written: {error.strerror}; choose another file") from error
