"""The command ``discovery``."""

import json
import os
import sys
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from discovery.check_command import check
from discovery.errors import ConfigError, DiscoveryError
from discovery.evaluation.cli import CorrectionsOption, compare
from discovery.evaluation.cli import app as evaluate_app
from discovery.finetune_command import finetune
from discovery.generation import sample, train
from discovery.simulate_command import simulate
from discovery.tune_command import app as tune_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from contextlib import AbstractContextManager

    from discovery.campaign import Campaign, Observer
    from discovery.config import CampaignConfig
    from discovery.status import Status

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # read by numerical libraries, which only the commands import

app = typer.Typer(
    help="Discover stable inorganic crystals: generator, force field, DFT and convex hull in one loop.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(tune_app, name="tune")
app.command()(train)
app.command()(sample)
app.command()(check)
app.command()(finetune)
app.command()(compare)
app.command()(simulate)
console = Console()
_FILE_WIDTH = 1000
"""Width of a tree that is not shown in a terminal, so that its lines are not broken."""

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a campaign.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", help="Show the lines of the log as they come.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Show no progress and no report.")]


class ExportFormat(StrEnum):
    """Formats of `discovery export`."""

    CIF = "cif"
    EXTXYZ = "extxyz"
    ENTRIES = "entries"


@app.command()
def launch(
    campaign: Annotated[str, typer.Argument(help="Name of a campaign, or the path of its YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="Settings, such as campaign.rounds=2, oracle/screening=emt or run_dir=runs/cuau."),
    ] = None,
    config_dir: Annotated[Path | None, typer.Option(help="Folder of your own configurations.")] = None,
    control_arms: Annotated[
        bool,
        typer.Option(
            "--control-arms",
            help="Afterwards run its control arms at equal budget, in RUN_DIR-ARM; the same command goes on.",
        ),
    ] = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Begin a campaign in a new run folder."""
    from discovery.campaign import Campaign
    from discovery.config import compose
    from discovery.launch_check import check_oracles
    from discovery.runfolder import RunFolder

    config = compose(campaign, overrides or [], config_dir)
    if not control_arms:
        RunFolder(config.run_dir).require_new()
    with Console(stderr=True, quiet=quiet).status("checking the oracles") as status:
        for warning in check_oracles(config, status.update):
            Console(stderr=True, soft_wrap=True).print(f"[yellow]warning[/yellow]: {warning}", highlight=False)
    if control_arms:
        _with_controls(config, quiet, verbose)
        return
    _drive(lambda observe: Campaign.launch(config, observe), config, config.run_dir, quiet, verbose)


def _with_controls(config: "CampaignConfig", quiet: bool, verbose: bool) -> None:
    """Run a campaign and its control arms one after the other, and show what each found."""
    from discovery import simulation
    from discovery.campaign import Campaign
    from discovery.runfolder import RunFolder
    from discovery.simulate_command import show

    arms = {"campaign": config, **simulation.control_arms(config)}
    runs = []
    for name, arm in arms.items():
        run = config.run_dir if name == "campaign" else config.run_dir.with_name(f"{config.run_dir.name}-{name}")
        own = arm.model_copy(update={"run_dir": run})
        begun = RunFolder(run).holds_campaign
        if not quiet:
            console.print(
                f"[bold]{name}[/bold]: {simulation.CONTROLS.get(name, 'as configured')} ({run})", highlight=False
            )
        opened = partial(Campaign.resume, run) if begun else partial(Campaign.launch, own)
        _drive(opened, own, run, quiet or name != "campaign", verbose)
        runs.append((name, run))
    if not quiet:
        show(simulation.collect(runs), "random" if "random" in arms else "campaign", (0.25, 0.5, 1.0))


@app.command()
def calibration(
    run: RunArgument, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False
) -> None:
    """Compare how probably stable each candidate was when it was selected with what happened."""
    from discovery.calibration import reliability
    from discovery.report import calibration_section
    from discovery.runfolder import RunFolder

    store = RunFolder(run).read_store()
    try:
        found = reliability(store)
    finally:
        store.close()
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2))
        return
    typer.echo(calibration_section(found) or "No candidate has been judged yet.")


@app.command()
def resume(run: RunArgument, quiet: QuietOption = False, verbose: VerboseOption = False) -> None:
    """Go on with a campaign that pauses or was interrupted; show the report of one that is finished."""
    from discovery import config, control
    from discovery.campaign import Campaign
    from discovery.runfolder import RunFolder

    folder = RunFolder(run)
    folder.require_campaign()
    if folder.has_driver():
        typer.echo(f"process {control.resume(run)} goes on; watch it with: discovery status {run}")
        return
    _drive(lambda observe: Campaign.resume(run, observe), config.read(folder.config), run, quiet, verbose)


@app.command()
def pause(run: RunArgument) -> None:
    """Let a running campaign finish what runs, start nothing new, and wait; `discovery resume` lets it go on."""
    from discovery import control

    pid = control.pause(run)
    typer.echo(f"process {pid} pauses once what runs is finished; let it go on with: discovery resume {run}")


@app.command()
def stop(
    run: RunArgument,
    now: Annotated[bool, typer.Option("--now", help="End running calculations, too; they are repeated later.")] = False,
) -> None:
    """End a running campaign once what runs is finished; `discovery resume` takes it up again."""
    from discovery import control

    pid = control.stop(run, now=now)
    when = "ends now" if now else "ends once what runs is finished"
    typer.echo(f"process {pid} {when}; take the campaign up again with: discovery resume {run}")


@app.command()
def status(run: RunArgument, as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False) -> None:
    """Show where a campaign stands, while it runs or afterwards."""
    from discovery.status import read_status

    current = read_status(run)
    if as_json:
        typer.echo(json.dumps(current.to_dict(), indent=2, ensure_ascii=False))
        return
    for line in _status_lines(current):
        console.print(line, highlight=False)


def _status_lines(current: "Status") -> "Iterator[str]":
    funnel = current.funnel
    yield f"{current.name} is {current.state}" + (f": {current.message}" if current.message else "")
    yield f"round {current.round + 1} of {current.rounds}, {current.seconds:.0f} s"
    yield " → ".join(f"{name} {funnel[name]}" for name in ("sampled", "admitted", "screened", "selected", "judged"))
    ends = ("rejected", "failed", "passed_over", "judged", "in_flight")
    yield f"{funnel['sampled']} sampled = " + " + ".join(f"{funnel[end]} {end.replace('_', ' ')}" for end in ends)
    for kind, amount in current.budget.spent.items():
        limit = current.budget.limit.get(kind)
        yield f"{kind}: {amount:.4g} spent" + (f" of {limit:g}" if limit is not None else "")
    yield f"stable (e_above_hull ≤ {current.threshold:g} eV/atom): {len(current.stable)}"
    for found in current.stable:
        verdict = found.verdict
        yield (
            f"  {found.phase.formula} {found.spacegroup}: decomposition energy {verdict.decomposition_energy:.3f}"
            f" eV/atom on {verdict.energy_scale}, hull version {verdict.hull_version} ({found.phase.id})"
        )


@app.command()
def export(
    run: RunArgument,
    format: Annotated[ExportFormat, typer.Option(help="What to write.")] = ExportFormat.CIF,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; RUN/export by default.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All phases of the reference hull, not only the stable ones discovered.")
    ] = False,
) -> None:
    """Write the discovered phases for other programs."""
    from discovery.export import export as write

    paths = write(run, format.value, out, everything=everything)
    for path in paths:
        typer.echo(path)
    if not paths:
        typer.echo("No stable phase was discovered; --all writes all phases of the hull.", err=True)


@app.command()
def trace(
    candidate: Annotated[str, typer.Argument(help="Id of a candidate, or a beginning of it that no other has.")],
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Run folder; by default this one, or the only one in runs.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Show the way of one candidate: reason, seed, checkpoint, evaluations and their cost, verdict, who learned."""
    from discovery.trace import find_run
    from discovery.trace import trace as follow

    found = follow(find_run(run), candidate)
    if as_json:
        typer.echo(json.dumps(found.to_dict(), indent=2, ensure_ascii=False))
        return
    if not console.is_terminal:
        console.width = _FILE_WIDTH
    console.print(found.tree(), highlight=False)


@app.command()
def report(run: RunArgument) -> None:
    """Show the report of a campaign; write report.md and report.html, which can be mailed, into the run folder."""
    _show_report(run)


@app.command()
def dashboard(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[RUN|DATABASE_URL]...",
            help="Run folders, folders that hold them, or databases; runs/ by default.",
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8050,
    host: Annotated[str, typer.Option(help="Address to listen on; everyone who reaches it can read.")] = "127.0.0.1",
    with_control: Annotated[
        bool, typer.Option("--control", help="Let those who have the token that is printed pause, resume and stop.")
    ] = False,
) -> None:
    """Show campaigns on a local page, live while they run; reads only."""
    from discovery.dashboard.serve import serve

    serve(runs or ["runs"], host=host, port=port, control=with_control)


@app.command()
def hull(
    candidates: Annotated[Path, typer.Argument(help="CSV, JSON of entries, extxyz with energies, or a run folder.")],
    reference: Annotated[Path, typer.Option(help="Entries that the hull is built from, in any of the same forms.")],
    corrections: CorrectionsOption = "none",
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Place candidates on the hull of reference entries; all energies must be of one scale."""
    from discovery.hull_command import place

    placed = place(candidates, reference, corrections=corrections == "mp2020")
    if as_json:
        typer.echo(json.dumps(placed.to_dict(), indent=2, ensure_ascii=False))
        return
    for placement in placed.placements:
        found = placement.decomposition
        if found is None:
            typer.echo(f"{placement.id}\t{placement.formula or '–'}\t{placement.problem}")
            continue
        products = " + ".join(f"{amount:.3g} {formula}" for formula, amount in found.products.items())
        typer.echo(
            f"{placement.id}\t{placement.formula}\te_above_hull {found.e_above_hull:.4f}\t"
            f"decomposition energy {found.decomposition_energy:+.4f} eV/atom\t{products}"
        )
    corrected = ", corrected by MP2020" if corrections == "mp2020" else ""
    n_placed = sum(placement.decomposition is not None for placement in placed.placements)
    typer.echo(
        f"{n_placed} of {len(placed.placements)} candidates placed on the hull of {placed.n_reference_phases} entries "
        f"({placed.energy_kind} energies{corrected}): "
        f"{placed.seconds_reading:.2f} s reading, {placed.seconds_hull:.2f} s hull"
    )


def _drive(
    open_campaign: "Callable[[Observer], AbstractContextManager[Campaign]]",
    config: "CampaignConfig",
    run: Path,
    quiet: bool,
    verbose: bool,
) -> None:
    """Run a campaign to its end and show the report."""
    from discovery.log import EventLog
    from discovery.progress import ConsoleProgress
    from discovery.runfolder import RunFolder

    with (
        EventLog(RunFolder(run).log, config.name, config.log, console if verbose else None) as log,
        ConsoleProgress(console, config.campaign.rounds, quiet=quiet or verbose) as progress,
    ):

        def observe(event: str, values: "Mapping[str, Any]") -> None:
            log(event, values)
            progress(event, values)

        with open_campaign(observe) as campaign:
            campaign.run()
    _show_report(run, quiet=quiet)


def _show_report(run: Path, *, quiet: bool = False) -> None:
    from rich.markdown import Markdown

    from discovery.report import write_report

    text = write_report(run)
    if quiet:
        return
    if console.is_terminal:
        console.print(Markdown(text))
    else:
        typer.echo(text)


def main() -> None:
    """Run the command; errors that a user can mend are shown without a traceback."""
    try:
        app()
    except DiscoveryError as error:
        from discovery.campaign import CampaignInterruptedError

        stopped = isinstance(error, CampaignInterruptedError)
        label = "[yellow]stopped[/yellow]" if stopped else "[red]error[/red]"
        Console(stderr=True, soft_wrap=True).print(f"{label}: ", end="")
        typer.echo(str(error), err=True)
        sys.exit(130 if stopped else 2 if isinstance(error, ConfigError) else 1)
