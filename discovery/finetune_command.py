"""The command ``discovery finetune``."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from discovery.types import Evaluation

PREFIX = "training."


def finetune(
    runs: Annotated[list[Path], typer.Argument(help="Run folders of campaigns.", exists=True, file_okay=False)],
    oracle: Annotated[str, typer.Option(help="Configuration of the oracle whose weights are adapted.")],
    out: Annotated[Path, typer.Option(help="Folder for the new weights.")],
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="The oracle's own, or training.epochs=50 and the like."),
    ] = None,
    validation_fraction: Annotated[float, typer.Option(min=0.01, max=0.9, help="Share of the results held out.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    config_dir: Annotated[Path | None, typer.Option(help="Folder of your own configurations.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Adapt a force field to the reference results of campaigns; the new weights are an energy scale of their own."""
    from dataclasses import asdict

    from rich.console import Console

    from discovery.config import compose_oracle, parse_options
    from discovery.errors import ConfigError, RunError
    from discovery.executor import PluginSpec
    from discovery.protocols import FineTunableOracle
    from discovery.training_data import split

    training_settings = [text.removeprefix(PREFIX) for text in settings or [] if text.startswith(PREFIX)]
    own_settings = [text for text in settings or [] if not text.startswith(PREFIX)]
    plugin: Any = PluginSpec.of(compose_oracle(oracle, own_settings, config_dir)).create()
    if not isinstance(plugin, FineTunableOracle):
        raise ConfigError(f"the oracle {oracle!r} has no weights to adapt; choose another with --oracle")
    options = parse_options(plugin.FineTuneConfig, training_settings)
    if out.exists() and any(out.iterdir()):
        raise RunError(f"{out} is not empty; name another folder with --out")
    results = read_results(runs)
    training, validation = split(list(results.items()), validation_fraction, seed)
    scale = training[0][1].energy_scale
    metadata = {
        "energy_scale": asdict(scale),
        "training": [id_ for id_, _ in training],
        "validation": [id_ for id_, _ in validation],
        "config": options.model_dump(mode="json"),
    }
    with Console(stderr=True).status(f"learning from {len(training)} results of {scale}"):
        checkpoint = plugin.fine_tune(
            [evaluation for _, evaluation in training],
            [evaluation for _, evaluation in validation],
            config=options,
            folder=out,
            metadata=metadata,
        )
    summary = {
        "path": checkpoint.path,
        "sha256": checkpoint.sha256,
        "parent": checkpoint.parent,
        "energy_scale": plugin.energy_scale.id,
        "learned_from": scale.id,
        "metrics": dict(checkpoint.metrics),
    }
    if as_json:
        typer.echo(json.dumps(summary, indent=2))
        return
    _print(Console(), summary)
    typer.echo(f"{checkpoint.path}: energy scale {plugin.energy_scale}. Check it before use:")
    own = {"functional": scale.functional, "corrections": scale.corrections}
    labels = "".join(f" {name}={value}" for name, value in own.items() if value and name in plugin.Config.model_fields)
    typer.echo(f"  discovery check {oracle} model={checkpoint.path}{labels}")


def read_results(runs: "Sequence[Path]") -> "dict[str, Evaluation]":
    """Return the successful reference evaluations of campaigns, reference phases included, by run and id.

    Raises
    ------
    EnergyScaleError
        If the campaigns do not have one energy scale.
    InvalidInputError
        If there are none.
    """
    from discovery.errors import EnergyScaleError, InvalidInputError
    from discovery.runfolder import RunFolder

    results: dict[str, Evaluation] = {}
    for run in runs:
        store = RunFolder(run).read_store()
        try:
            found = store.evaluations("reference")
        finally:
            store.close()
        results |= {f"{run.name}/{id_}": evaluation for id_, evaluation in found.items() if evaluation.ok}
    scales = {evaluation.energy_scale for evaluation in results.values()}
    if len(scales) > 1:
        raise EnergyScaleError(
            f"the campaigns' reference energies are on different scales: {', '.join(sorted(map(str, scales)))}; "
            "name campaigns with the same reference oracle"
        )
    if not results:
        raise InvalidInputError(f"no finished reference calculation in {', '.join(map(str, runs))}")
    return results


def _print(console: "Console", summary: "dict[str, Any]") -> None:
    from rich.table import Table

    metrics = summary["metrics"]
    table = Table(
        title=f"{metrics['n_validation']:.0f} held-out results, after {metrics['n_training']:.0f} learned from "
        f"(epoch {metrics['best_epoch']:.0f} is best)",
        title_justify="left",
    )
    for name in ("mean absolute error", "elements shifted", "fine-tuned", "unit"):
        table.add_column(name, justify="left" if name in ("mean absolute error", "unit") else "right")
    for name, unit in (("energy", "eV/atom"), ("force", "eV/Å"), ("stress", "eV/Å³")):
        if f"{name}_mae_after" in metrics:
            before, after = (f"{metrics[f'{name}_mae_{when}']:.4g}" for when in ("before", "after"))
            table.add_row(name, before, after, unit)
    console.print(table)
