"""The command ``discovery check``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from discovery.check import CheckReport


def check(
    oracle: Annotated[str, typer.Argument(help="Name of an oracle's configuration: emt, chgnet, matgl, gpaw, …")],
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Its settings, such as model=models/TensorNet.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Fewer solids, for oracles that take long.")] = False,
    folder: Annotated[
        Path | None, typer.Option(help="Keeps the files of an external program; finished parts are not repeated.")
    ] = None,
    config_dir: Annotated[Path | None, typer.Option(help="Folder of your own configurations.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Compare an oracle with published data and with itself; ends with code 1 if it fails."""
    from rich.console import Console

    from discovery.check import check as run
    from discovery.config import compose_oracle
    from discovery.launch_check import remember

    choice = compose_oracle(oracle, settings or [], config_dir)
    with Console(stderr=True).status(f"loading {oracle}") as status:
        report = run(choice, extent="quick" if quick else "full", folder=folder, progress=status.update)
    remember(report)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=2, ensure_ascii=False))
    else:
        console = Console()
        console.print(_table(report))
        for line in _summary(report):
            console.print(line, highlight=False)
    if not report.passed:
        raise typer.Exit(1)


def _table(report: "CheckReport") -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{report.energy_scale} against {report.references}", title_justify="left")
    table.add_column("check")
    table.add_column("crystal")
    for name in ("value", "expected", "deviation", "tolerance"):
        table.add_column(name, justify="right")
    table.add_column("")
    for item in report.checks:
        table.add_row(
            item.quantity,
            item.subject,
            _number(item.value),
            _number(item.expected),
            f"{item.deviation:+.2g} {item.unit}" if item.deviation is not None else item.problem,
            f"{item.tolerance:.2g} {item.unit}",
            Text("pass", "green") if item.passed else Text("FAIL", "bold red"),
        )
    return table


def _number(value: float | None) -> str:
    return f"{value:.4g}" if value is not None else ""


def _summary(report: "CheckReport") -> list[str]:
    failed = sum(not item.passed for item in report.checks)
    lines = [f"{len(report.checks) - failed} of {len(report.checks)} checks passed in {report.seconds:.0f} s"]
    if report.seconds_per_atom is not None:
        lines.append(f"static calculations of known solids: {report.seconds_per_atom:.3g} s per atom (median)")
    if report.left_out:
        lines.append(f"without parameters or published data: {', '.join(report.left_out)}")
    lines.append("This oracle can be trusted with what was checked." if report.passed else "Do not use this oracle.")
    return lines
