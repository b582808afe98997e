"""The command ``discovery evaluate``: one subcommand per protocol."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from discovery.generation import CheckpointOption, GeneratorOption, SettingsArgument, create_generator, whole_atoms

if TYPE_CHECKING:
    from discovery.evaluation.output import Stages
    from discovery.protocols import Oracle
    from discovery.sets import CrystalSet

app = typer.Typer(help="Judge generated crystals by the field's protocols.", no_args_is_help=True)


@app.callback()
def evaluate() -> None:
    """Judge generated crystals by the field's protocols."""


ReferenceOption = Annotated[
    Path | None, typer.Option(help="The test set, in any of the same forms; without it only validity is judged.")
]
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


Corrections = Literal["none", "mp2020"]
MatcherOption = Annotated[
    Literal["ordered", "disordered"],
    typer.Option(help="Which crystals are the same; disordered: also two orderings of one alloy."),
]
CorrectionsOption = Annotated[
    Corrections,
    typer.Option(help="Correct energies once, from the uncorrected ones of entries and oracles; none: as they are."),
]
KnownOption = Annotated[Path | None, typer.Option(help="Crystals that are known; those of the hull by default.")]


def _read(
    path: Path, bars: "Stages", *, crystals: bool = True, corrections: bool = False, limit: int | None = None
) -> "CrystalSet":
    from discovery.sets import read_set

    return read_set(
        path, crystals=crystals, corrections=corrections, limit=limit, progress=lambda: bars(f"reading {path.name}")
    )


def _hull_and_known(
    hull: Path, reference: Path | None, bars: "Stages", corrections: Corrections
) -> "tuple[CrystalSet, CrystalSet]":
    """Return the entries of the hull and the known crystals."""
    entries = _read(hull, bars, crystals=reference is None, corrections=corrections == "mp2020")
    return entries, entries if reference is None else _read(reference, bars)


def _create_oracle(name: str, settings: list[str]) -> "Oracle":
    from discovery import plugins
    from discovery.config import parse_options

    plugin = plugins.load("oracles", name)
    oracle: Oracle = plugin(parse_options(plugin.Config, settings))
    return oracle


@app.command()
def proxy(
    generated: GeneratedArgument,
    reference: ReferenceOption = None,
    data_set: Annotated[str, typer.Option(help="Whose cut-offs of coverage: mp20, carbon or perovskite.")] = "mp20",
    workers: Annotated[int, typer.Option(min=1, help="Processes that compute fingerprints.")] = 1,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P1: validity, coverage, diversity and distributions of CDVAE, against a test set."""
    from discovery.evaluation.output import progress_bars, show
    from discovery.evaluation.proxy import evaluate as judge
    from discovery.evaluation.proxy import evaluate_validity

    with progress_bars() as bars:
        wanted = _read(generated, bars)
        if reference is None:
            bars.expect(validity=len(wanted.crystals))
            result = evaluate_validity(wanted, workers=workers, seed=seed, progress=lambda: bars("validity"))
            show(result, as_json=as_json, out=out, page=page)
            return
        known = _read(reference, bars)
        bars.expect(fingerprints=len(wanted.crystals) + len(known.crystals))
        result = judge(
            wanted, known, data_set=data_set, workers=workers, seed=seed, progress=lambda: bars("fingerprints")
        )
    show(result, as_json=as_json, out=out, page=page)


@app.command()
def reconstruction(
    predicted: GeneratedArgument,
    truth: Annotated[Path, typer.Argument(help="The true crystals, one for each prediction, with its id or in order.")],
    matcher: MatcherOption = "ordered",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P2: match rate and displacement of predicted crystals against the true ones."""
    from discovery.evaluation.output import progress_bars, show
    from discovery.evaluation.reconstruction import evaluate as judge
    from discovery.evaluation.reconstruction import protocol_matcher

    with progress_bars() as bars:
        found, true = _read(predicted, bars), _read(truth, bars)
        bars.expect(matching=len(true.members))
        chosen = protocol_matcher(matcher)
        result = judge(found, true, matcher=chosen, seed=seed, progress=lambda: bars("matching"))
    show(result, as_json=as_json, out=out, page=page)


@app.command()
def stability(
    generated: GeneratedArgument,
    hull: HullOption,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the oracle, such as fmax=0.05.")
    ] = None,
    reference: KnownOption = None,
    oracle: Annotated[
        str | None, typer.Option(help="Relaxes the crystals; without it they must have energies and be relaxed.")
    ] = None,
    matcher: MatcherOption = "ordered",
    corrections: CorrectionsOption = "none",
    sampling_seconds: Annotated[float | None, typer.Option(help="What generating them took, for the cost.")] = None,
    sampling_on_gpu: Annotated[bool, typer.Option("--sampling-on-gpu", help="It took them on a GPU.")] = False,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P3: stable, unique and novel crystals at 0, 0.025, 0.05 and 0.1 eV/atom, and what they cost."""
    from discovery.evaluation.cost import Clock
    from discovery.evaluation.output import progress_bars, show
    from discovery.evaluation.stability import evaluate as judge
    from discovery.matching import create_matcher

    sampling = Clock()
    if sampling_seconds is not None:
        sampling.add("sampling", sampling_seconds, on_gpu=sampling_on_gpu)
    with progress_bars() as bars:
        entries, known = _hull_and_known(hull, reference, bars, corrections)
        wanted = _read(generated, bars, corrections=corrections == "mp2020" and oracle is None)
        n = len(wanted.members)
        bars.expect(relaxation=n, uniqueness=n, novelty=n, displacements=n)
        result = judge(
            wanted,
            entries,
            known,
            _create_oracle(oracle, settings or []) if oracle is not None else None,
            matcher=create_matcher(matcher),
            corrections=corrections == "mp2020",
            seed=seed,
            sampling=sampling,
            progress=bars,
        )
    show(result, as_json=as_json, out=out, page=page)


@app.command()
def pairs(
    first: GeneratedArgument,
    second: Annotated[Path, typer.Argument(help="The set it is compared with, such as that of random search.")],
    hull: Annotated[
        Path | None, typer.Option(help="Entries of the reference hull, for numbers of stable crystals.")
    ] = None,
    corrections: CorrectionsOption = "none",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P4: formation energies of two sets of relaxed crystals, composition by composition (UniMat)."""
    from discovery.evaluation.output import progress_bars, show
    from discovery.evaluation.pairs import evaluate as judge

    with progress_bars() as bars:
        paths = [first, second, *([hull] if hull is not None else [])]
        sets = [_read(path, bars, crystals=False, corrections=corrections == "mp2020") for path in paths]
        result = judge(*sets, seed=seed)
    show(result, as_json=as_json, out=out, page=page)


@app.command()
def csp(
    data: Annotated[Path, typer.Argument(metavar="DATA", help="The true crystals: a CSV file with a column cif, …")],
    settings: SettingsArgument = None,
    generator: GeneratorOption = "unimat",
    checkpoint: CheckpointOption = None,
    samples: Annotated[int, typer.Option(min=1, help="Samples for each crystal; the best counts.")] = 1,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first crystals of the file.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """P2: predict crystals of the compositions of a file and compare them with its crystals."""
    from discovery.evaluation.csp import headline, predict
    from discovery.evaluation.output import progress_bars, show

    chosen = create_generator(generator, checkpoint, settings or [])
    with progress_bars() as bars:
        truth = _read(data, bars, limit=limit)
        bars.expect(sampling=len(truth.crystals), matching=len(truth.crystals))
        result = predict(chosen, truth, samples=samples, seed=seed, progress=bars)
    own = {"generator": generator, "data": data.name, "seed": seed, **headline(result)}
    show(result, as_json=as_json, out=out, page=page, headline=own)


def compare(
    compositions: Annotated[
        list[str],
        typer.Argument(
            metavar="COMPOSITION... [NAME.KEY=VALUE]...",
            help="Atoms in the cells, such as Mg2Si Ca1Ti1O3; then settings of a generator or of the oracle by its "
            "name, such as unimat.steps=50 chgnet.fmax=0.1.",
        ),
    ],
    hull: HullOption,
    generator: Annotated[list[str], typer.Option(help="Name of a generator; give it several times.")],
    samples: Annotated[int, typer.Option(min=1, help="Samples of each composition, for each generator.")] = 16,
    relaxations: Annotated[int | None, typer.Option(min=1, help="Relaxations that each generator may take.")] = None,
    oracle: Annotated[str, typer.Option(help="Relaxes all samples and is the common filter.")] = "chgnet",
    oracle_seconds: Annotated[
        float | None, typer.Option(min=0, help="Seconds of relaxation that each generator may take.")
    ] = None,
    reference: KnownOption = None,
    matcher: MatcherOption = "ordered",
    corrections: CorrectionsOption = "none",
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    out: OutOption = None,
    page: PageOption = None,
) -> None:
    """Compare generators at equal budget: the same compositions, samples, relaxations and hull for all."""
    from discovery.evaluation.compare import compare as judge
    from discovery.evaluation.output import progress_bars, show_comparison
    from discovery.evaluation.stability import Budget
    from discovery.matching import create_matcher
    from discovery.types import Target

    targets = [Target(samples, whole_atoms(item, "composition")) for item in compositions if "=" not in item]
    settings = _settings_by_name([item for item in compositions if "=" in item], {*generator, oracle})
    chosen = {name: create_generator(name, None, settings[name]) for name in generator}
    with progress_bars() as bars:
        entries, known = _hull_and_known(hull, reference, bars, corrections)
        n = len(targets) * samples
        bars.expect(sampling=n, relaxation=n, uniqueness=n, novelty=n, displacements=n)
        comparison = judge(
            chosen,
            targets,
            entries,
            known,
            _create_oracle(oracle, settings[oracle]),
            matcher=create_matcher(matcher),
            corrections=corrections == "mp2020",
            budget=Budget(relaxations, oracle_seconds),
            seed=seed,
            progress=bars,
        )
    show_comparison(comparison, as_json=as_json, out=out, page=page)


def _settings_by_name(given: list[str], names: set[str]) -> dict[str, list[str]]:
    """Return plug-in → its settings, of settings such as ``unimat.steps=50``."""
    from discovery.errors import ConfigError

    settings: dict[str, list[str]] = {name: [] for name in names}
    for item in given:
        name, _, setting = item.partition(".")
        if name not in settings or not setting:
            raise ConfigError(f"{item}: write NAME.KEY=VALUE with one of the names {', '.join(sorted(names))}")
        settings[name].append(setting)
    return settings
