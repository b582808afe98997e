"""The command ``discovery evaluate``: one subcommand per protocol."""

import json
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from discovery.generation import CheckpointOption, GeneratorOption, SettingsArgument, create_generator

app = typer.Typer(help="Judge generated crystals by the field's protocols.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Judge generated crystals by the field's protocols."""


ReferenceOption = Annotated[Path, typer.Option(help="Reference crystals: any of the same forms.")]
HullOption = Annotated[
    Path, typer.Option("--hull", help="Entries of the reference hull: CSV, JSON, extxyz, run folder.")
]
GeneratedArgument = Annotated[
    Path, typer.Argument(help="Folder of CIF files, extxyz, zip of CIF files, JSON of entries, CSV or run folder.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="For machines.")]
OutOption = Annotated[Path | None, typer.Option(help="Also write the JSON to this file.")]
PageOption = Annotated[Path | None, typer.Option("--html", help="Also write a page with plots to this file.")]
SeedOption = Annotated[int, typer.Option(help="Of draws and intervals.")]


@app.command()
def proxy(
    generated: GeneratedArgument,
    reference: ReferenceOption,
    data_set: Annotated[str, typer.Option(help="Whose cut-offs of coverage: mp20, carbon or perovskite.")] = "mp20",
    workers: Annotated[int, typer.Option(min=1, help="Processes that compute fingerprints.")] = 1,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P1: validity, coverage, diversity and distributions of CDVAE, against a test set."""
    from discovery.evaluation.output import progress_bar, show
    from discovery.evaluation.proxy import evaluate as judge
    from discovery.sets import read_set

    wanted, known = read_set(generated), read_set(reference)
    with progress_bar("fingerprints", len(wanted.crystals) + len(known.crystals)) as bar:
        advance = partial(bar.advance, bar.task_ids[0])
        result = judge(wanted, known, data_set=data_set, workers=workers, seed=seed, progress=advance)
    show(result, as_json=as_json, out=out, page=page)


@app.command()
def reconstruction(
    predicted: GeneratedArgument,
    truth: Annotated[Path, typer.Argument(help="The true crystals, one for each prediction, with its id or in order.")],
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P2: match rate and displacement of predicted crystals against the true ones."""
    from discovery.evaluation.output import progress_bar, show
    from discovery.evaluation.reconstruction import evaluate as judge
    from discovery.sets import read_set

    found, true = read_set(predicted), read_set(truth)
    with progress_bar("matching", len(true.members)) as bar:
        result = judge(found, true, seed=seed, progress=partial(bar.advance, bar.task_ids[0]))
    show(result, as_json=as_json, out=out, page=page)


@app.command()
def stability(
    generated: GeneratedArgument,
    hull: HullOption,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the oracle, such as fmax=0.05.")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Crystals that are known; those of the hull by default.")
    ] = None,
    oracle: Annotated[
        str | None, typer.Option(help="Relaxes the crystals; without it they must have energies and be relaxed.")
    ] = None,
    sampling_seconds: Annotated[float | None, typer.Option(help="What generating them took, for the cost.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P3: stable, unique and novel crystals at 0, 0.025, 0.05 and 0.1 eV/atom, and what they cost."""
    from discovery import plugins
    from discovery.config import parse_options
    from discovery.evaluation.output import progress_bar, show
    from discovery.evaluation.stability import evaluate as judge
    from discovery.sets import read_set

    entries = read_set(hull, crystals=reference is None)
    known = entries if reference is None else read_set(reference)
    wanted = read_set(generated)
    plugin = plugins.load("oracles", oracle) if oracle is not None else None
    chosen = plugin(parse_options(plugin.Config, settings or [])) if plugin is not None else None
    with progress_bar("relaxing", len(wanted.members)) as bar:
        result = judge(
            wanted,
            entries,
            known.crystals,
            chosen,
            seed=seed,
            sampling_seconds=sampling_seconds,
            progress=partial(bar.advance, bar.task_ids[0]),
        )
    show(result, as_json=as_json, out=out, page=page)


@app.command()
def pairs(
    first: GeneratedArgument,
    second: Annotated[Path, typer.Argument(help="The set it is compared with, such as that of random search.")],
    hull: Annotated[
        Path | None, typer.Option(help="Entries of the reference hull, for numbers of stable crystals.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P4: formation energies of two sets of relaxed crystals, composition by composition (UniMat)."""
    from discovery.evaluation.output import show
    from discovery.evaluation.pairs import evaluate as judge
    from discovery.sets import read_set

    entries = read_set(hull, crystals=False) if hull is not None else None
    result = judge(read_set(first, crystals=False), read_set(second, crystals=False), entries, seed=seed)
    show(result, as_json=as_json, out=out, page=page)


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


def compare(
    compositions: Annotated[list[str], typer.Argument(help="Atoms in the cells, such as Mg2Si Ca1Ti1O3.")],
    hull: HullOption,
    generator: Annotated[list[str], typer.Option(help="Name of a generator; give it several times.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples of each composition, for each generator.")] = 16,
    oracle: Annotated[str, typer.Option(help="Relaxes all samples and is the common filter.")] = "chgnet",
    oracle_seconds: Annotated[float | None, typer.Option(help="Limit of relaxation for each generator, s.")] = None,
    reference: Annotated[
        Path | None, typer.Option(help="Crystals that are known; those of the hull by default.")
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
) -> None:
    """Compare generators at equal budget: the same compositions, samples, relaxations and hull for all."""
    from pymatgen.core import Composition

    from discovery import plugins
    from discovery.errors import InvalidInputError
    from discovery.evaluation.compare import compare as judge
    from discovery.evaluation.output import progress_bar, show_comparison
    from discovery.sets import read_set
    from discovery.types import Target

    targets = []
    for formula in compositions:
        try:
            amounts = Composition(formula).get_el_amt_dict()
        except ValueError as error:
            raise InvalidInputError(f"{formula}: {error}; write compositions such as Mg2Si") from error
        targets.append(Target(samples, {element: int(n) for element, n in amounts.items()}))
    entries = read_set(hull, crystals=reference is None)
    known = entries if reference is None else read_set(reference)
    plugin = plugins.load("oracles", oracle)
    chosen = {name: create_generator(name, None, []) for name in generator}
    with progress_bar("relaxing", len(chosen) * len(targets) * samples) as bar:
        comparison = judge(
            chosen,
            targets,
            entries,
            known.crystals,
            plugin(plugin.Config()),
            oracle_seconds=oracle_seconds,
            seed=seed,
            progress=partial(bar.advance, bar.task_ids[0]),
        )
    show_comparison(comparison, as_json=as_json, out=out)
