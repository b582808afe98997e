"""The command ``discovery tune``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from discovery.generation import (
    DataArgument,
    GeneratorOption,
    LeaveOutOption,
    SplitSeedOption,
    TrainingJob,
    ValidationFractionOption,
    ValidationOption,
    split_arguments,
    training_config,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from optuna.trial import FrozenTrial

    from discovery.tune import Report, Study, Tuning

app = typer.Typer(
    help="Search for good settings with Optuna. Settings that are searched are written as in Hydra: "
    "KEY=choice(a,b), KEY=interval(0,1), KEY=int(interval(2,8)), KEY=tag(log,interval(1e-4,1e-2)).",
    no_args_is_help=True,
)

OutOption = Annotated[Path, typer.Option(help="Folder of the study; an interrupted one goes on from there.")]
TrialsOption = Annotated[int, typer.Option(min=1, help="Trials in all, those of earlier calls included.")]
WorkersOption = Annotated[int, typer.Option(min=1, help="Trials at the same time, on Ray if more than one.")]
StorageOption = Annotated[
    str | None, typer.Option(help="Database URL of the study, such as that of a campaign; OUT/study.db by default.")
]
TuneSeedOption = Annotated[int, typer.Option(help="Of the search.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]


@dataclass(frozen=True)
class TrainingObjective:
    """The lowest validation loss of a training; validations on the way let bad trials end early."""

    job: TrainingJob

    def __call__(self, settings: "Sequence[str]", folder: Path, report: "Report") -> float:
        """Train in `folder` and return the loss."""
        return self.job.run(training_config(self.job.generator, settings), folder, report).metrics["validation_loss"]


@app.command()
def train(
    data: DataArgument,
    out: OutOption,
    generator: GeneratorOption = "unimat",
    trials: TrialsOption = 20,
    workers: WorkersOption = 1,
    storage: StorageOption = None,
    validation: ValidationOption = None,
    validation_fraction: ValidationFractionOption = 0.05,
    leave_out: LeaveOutOption = None,
    split_seed: SplitSeedOption = 0,
    seed: TuneSeedOption = 0,
    as_json: JsonOption = False,
) -> None:
    """Search for the settings of `discovery train` with the lowest validation loss.

    Losses are compared between trials: do not tune what changes their meaning, such as noise schedules or the variant.
    Writes OUT/best.yaml for `discovery train --config` and OUT/study.html.
    """
    import optuna

    from discovery.tune import Study, parse_sweeps

    paths, settings = split_arguments(data)
    fixed, sweeps = parse_sweeps(settings)
    for sweep in sweeps:
        for setting in sweep.extremes:
            training_config(generator, [*fixed, setting])
    job = TrainingJob.read(
        generator,
        paths,
        validation=validation or (),
        validation_fraction=validation_fraction,
        leave_out=leave_out,
        seed=split_seed,
    )
    study = Study(
        TrainingObjective(job),
        fixed,
        sweeps,
        out,
        direction="minimize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        storage=storage,
        seed=seed,
    )
    tuning = _run(study, trials, workers)
    best = out / "best.yaml"
    best.write_text(_as_yaml(tuning))
    _show(study, tuning, best, f"discovery train {' '.join(map(str, paths))} --config {best} --out FOLDER", as_json)


@dataclass(frozen=True)
class CampaignObjective:
    """The mean number of stable phases that simulated campaigns have found, averaged over their budget.

    Parameters
    ----------
    campaign, config_dir
        As :func:`discovery.config.compose` takes them.
    databases
        Chemical space → file of known results, or None if the campaign's oracles need none.
    seeds
        Campaigns in each space.
    """

    campaign: str
    config_dir: Path | None
    databases: "Mapping[str, Path | None]"
    seeds: int

    def __call__(self, settings: "Sequence[str]", folder: Path, report: "Report") -> float:
        """Simulate in `folder`, one seed after the other in every space, and return the value."""
        from discovery.simulation import replay

        values: list[float] = []
        for seed in range(self.seeds):
            for space, database in self.databases.items():
                result = replay(
                    self.campaign,
                    [*settings, f"campaign.chemical_space={space}"],
                    out=folder / space,
                    databases=() if database is None else [database],
                    seeds=[seed],
                    config_dir=self.config_dir,
                )
                (arm,) = result.arms
                values.append(float(result.found(arm)[:, 1:].mean()))
                report(len(values), values[-1])
        return sum(values) / len(values)


@app.command()
def simulate(
    campaign: Annotated[str, typer.Argument(help="Name of a campaign, or the path of its YAML file.")],
    settings: Annotated[
        list[str], typer.Argument(metavar="KEY=VALUE...", help="Settings of the campaign, some of them searched.")
    ],
    out: OutOption,
    database: Annotated[
        list[Path] | None, typer.Option(help="Known results: CSV files or JSON files of entries; may be repeated.")
    ] = None,
    spaces: Annotated[
        str | None, typer.Option(help="Chemical spaces to simulate in, separated by commas: Al-Ni-Pr,Cu-Zr.")
    ] = None,
    into: Annotated[
        str | None, typer.Option(help="Campaign that gets the best settings; by default the one simulated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Campaigns of each trial in each space.")] = 5,
    trials: TrialsOption = 20,
    workers: WorkersOption = 1,
    storage: StorageOption = None,
    seed: TuneSeedOption = 0,
    config_dir: Annotated[Path | None, typer.Option(help="Folder of your own configurations.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Search for the settings with which `discovery simulate` finds most stable phases early.

    Writes OUT/best.yaml for `discovery launch` and OUT/study.html.
    """
    import optuna

    from discovery.config import campaign_file, compose
    from discovery.simulation import read_database
    from discovery.tune import Study, parse_sweeps, quiet_optuna

    fixed, sweeps = parse_sweeps(settings)
    roots = {sweep.key.partition(".")[0] for sweep in sweeps}
    target = into or campaign
    kept = [text for text in fixed if into is None or text.partition("=")[0] in roots]
    given = [f"campaign.chemical_space={spaces.partition(',')[0]}"] if spaces else []
    for sweep in sweeps:
        for setting in sweep.extremes:
            config = compose(campaign, [*fixed, *given, setting], config_dir)
            campaign_file(target, [*kept, setting], config_dir)
    databases: dict[str, Path | None] = {}
    for space in spaces.split(",") if spaces else [config.campaign.chemical_space]:
        path = out.resolve() / "databases" / f"{space}.csv" if database else None
        if database and path:
            read_database(database, space.split("-")).write(path)
        databases[space] = path
    with quiet_optuna():
        pruner = optuna.pruners.WilcoxonPruner(p_threshold=0.1)
    study = Study(
        CampaignObjective(campaign, config_dir, databases, seeds),
        fixed,
        sweeps,
        out,
        direction="maximize",
        pruner=pruner,
        storage=storage,
        seed=seed,
    )
    tuning = _run(study, trials, workers)
    best = out / "best.yaml"
    tuned = [sweep.setting(tuning.parameters[sweep.key]) for sweep in sweeps]
    best.write_text(campaign_file(target, [*kept, *tuned], config_dir))
    _show(study, tuning, best, f"discovery launch {best}", as_json)


def _run(study: "Study", trials: int, workers: int) -> "Tuning":
    """Run a study, with a line on standard error for each trial that ends."""
    console = Console(stderr=True, soft_wrap=True)

    def observe(trial: "FrozenTrial") -> None:
        state = trial.state.name.lower()
        shown = "" if trial.value is None else f" {trial.value:.6g}"
        reason = f" ({trial.user_attrs['error']})" if "error" in trial.user_attrs else ""
        settings = " ".join(sweep.setting(trial.params[sweep.key]) for sweep in study.sweeps)
        console.print(f"trial {trial.number} {state}{shown}{reason}: {settings}", highlight=False, markup=False)

    return study.run(trials, workers=workers, observe=observe)


def _as_yaml(tuning: "Tuning") -> str:
    from omegaconf import OmegaConf

    return OmegaConf.to_yaml(OmegaConf.from_dotlist(list(tuning.settings)))


def _show(study: "Study", tuning: "Tuning", best: Path, next_command: str, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps({**tuning.to_dict(), "config": str(best)}))
        return
    counts = ", ".join(f"{count} {state}" for state, count in tuning.trials.items())
    typer.echo(f"best of {sum(tuning.trials.values())} trials ({counts}): {tuning.value:.6g}")
    for sweep in study.sweeps:
        typer.echo(f"  {sweep.setting(tuning.parameters[sweep.key])}")
    typer.echo(f"written to {best}; plots in {study.folder / 'study.html'}. Use it:\n  {next_command}")
