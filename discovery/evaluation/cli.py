"""The command ``discovery evaluate``: one subcommand per protocol."""

import json
from pathlib import Path
from typing import Annotated

import typer

from discovery.generation import CheckpointOption, GeneratorOption, SettingsArgument, create_generator

app = typer.Typer(help="Judge generated crystals by the field's protocols.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Judge generated crystals by the field's protocols."""


@app.command()
def csp(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="CSV file of the true crystals, with a column cif.")],
    settings: SettingsArgument = None,
    generator: GeneratorOption = "unimat",
    checkpoint: CheckpointOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples for each crystal; the best counts.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first crystals of the file.")] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal crystals.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> None:
    """Predict crystals of the compositions of a file and compare them with its crystals."""
    from discovery.evaluation.csp import predict
    from discovery.references import read_csv

    chosen = create_generator(generator, checkpoint, settings or [])
    content = read_csv(data, limit=limit)
    for skipped in content.skipped:
        typer.echo(f"{data} row {skipped.row} skipped: {skipped.reason}", err=True)
    result = predict(chosen, [known.crystal for known in content.crystals], samples=samples, seed=seed)
    if as_json:
        typer.echo(json.dumps({"generator": generator, "data": data.name, "seed": seed, **result.to_dict()}))
        return
    for name, part in (("all", result.all), ("valid", result.valid)):
        rmse = "–" if part.rmse is None else f"{part.rmse:.4f}"
        typer.echo(f"{name}: match_rate {part.match_rate:.4f}, rmse {rmse}")
    typer.echo(f"n {result.n}, samples {result.samples}, valid {result.valid_rate:.4f}, {result.seconds:.1f} s")
