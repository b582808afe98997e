"""The command ``discovery simulate``."""

import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from discovery.simulation import Estimate, Simulation


def simulate(
    campaign: Annotated[str, typer.Argument(help="Name of a campaign, or the path of its YAML file.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings, such as campaign.chemical_space=Al-Ni-Pr.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of all run folders and of simulation.json.")] = Path(
        "runs/simulation"
    ),
    database: Annotated[
        list[Path] | None, typer.Option(help="Known results: CSV files or JSON files of entries; may be repeated.")
    ] = None,
    known: Annotated[float, typer.Option(min=0.0, max=1.0, help="Share of the database known beforehand.")] = 0.0,
    agents: Annotated[str, typer.Option(help="Agents to compare, separated by commas.")] = "random,greedy",
    arms: Annotated[bool, typer.Option("--arms", help="Also run the campaign's control arms.")] = False,
    baseline: Annotated[str, typer.Option(help="Arm that the others are compared with.")] = "random",
    seeds: Annotated[int, typer.Option(min=1, help="Campaigns of each arm.")] = 10,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Campaigns at the same time; all cores by default.")
    ] = None,
    config_dir: Annotated[Path | None, typer.Option(help="Folder of your own configurations.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Replay whole campaigns on known results or a cheap oracle, to see which agent finds most per calculation.

    With --database, the choices called `replay` (oracle and generator) use its phases. The same command goes on where
    it was interrupted.
    """
    from discovery.errors import ConfigError
    from discovery.simulation import SHARES, replay

    names = [name.strip() for name in agents.split(",") if name.strip()]
    if baseline not in names and not (arms and baseline == "random"):
        raise ConfigError(f"--baseline {baseline} is none of the arms ({', '.join(names)}); add it to --agents")

    with Progress(
        TextColumn("[bold]campaigns"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[last]}"),
        TimeElapsedColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as progress:
        task = progress.add_task("campaigns", total=None, last="reading the database")

        def advance(done: int, total: int, last: str) -> None:
            progress.update(task, completed=done, total=total, last=last)

        result = replay(
            campaign,
            overrides or [],
            out=out,
            databases=database or [],
            known=known,
            agents=names,
            controls=arms,
            seeds=range(seeds),
            workers=workers or len(os.sched_getaffinity(0)),
            config_dir=config_dir,
            progress=advance,
        )
    summary = result.summary(baseline)
    (out / "simulation.json").write_text(json.dumps(result.to_dict(), ensure_ascii=False))
    (out / "summary.json").write_text(json.dumps(summary, indent=2, ensure_ascii=False) + "\n")
    if as_json:
        typer.echo(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    show(result, baseline, SHARES)


def show(result: "Simulation", baseline: str, shares: "Sequence[float]") -> None:
    """Print what each arm found, and how many times as much as the baseline."""
    console = Console()
    console.print(
        f"{'-'.join(result.elements)}: {len(result.stable)} stable phases to find, "
        f"{len(result.reachable)} of them within reach, {result.budget} reference calculations",
        highlight=False,
    )
    several = any(len(result.found(arm)) > 1 for arm in result.arms)
    counted, interval = ("mean of all seeds", ", 95 % interval") if several else ("one seed", "")
    table = Table(title=f"Stable phases found, {counted} (times as many as the baseline{interval})")
    table.add_column("arm")
    for share in shares:
        table.add_column(f"{share:.0%} of budget", justify="right")
    for arm in result.arms:
        cells = []
        for share in shares:
            found = result.found(arm)[:, result.calls(share)].mean()
            cell = f"{found:.2f}"
            if arm != baseline and baseline in result.arms:
                cell += f"  ({_times(result.acceleration(arm, baseline, share), interval=several)})"
            cells.append(cell)
        table.add_row(arm, *cells)
    console.print(table)
    _show_calibration(result, console)


def _show_calibration(result: "Simulation", console: Console) -> None:
    """Print how probably stable candidates were said to be, and how many were: reliability, and score by selection."""
    scored = {arm: found for arm in result.arms if (found := result.reliability(arm)).predictions}
    if not scored:
        return
    table = Table(title="Probability, when a candidate was selected, that it would be stable, against what happened")
    for column in ("arm", "candidates", "mean probability", "share stable"):
        table.add_column(column, justify="left" if column == "arm" else "right")
    for arm, found in scored.items():
        for index, one in enumerate(found.curve()):
            table.add_row("" if index else arm, str(one.n), f"{one.probability:.2f}", f"{one.came_true:.2f}")
        table.add_section()
    console.print(table)
    table = Table(title="Brier score by selection: 0 is perfect, the last row always predicts the share that came true")
    table.add_column("selection")
    for arm in scored:
        table.add_column(arm, justify="right")
    for selection in sorted({s for found in scored.values() for s in found.selections}):
        scores = [f"{f.brier(selection):.3f}" if selection in f.selections else "–" for f in scored.values()]
        table.add_row(str(selection), *scores)
    table.add_section()
    table.add_row("all", *(f"{found.brier():.3f}" for found in scored.values()))
    table.add_row("share alone", *(f"{found.base_rate_brier():.3f}" for found in scored.values()))
    console.print(table)


def _times(estimate: "Estimate", *, interval: bool) -> str:
    value, low, high = (f"{x:.3g}" if math.isfinite(x) else "∞" for x in (estimate.value, estimate.low, estimate.high))
    return f"{value}×, {low}–{high}" if interval else f"{value}×"
