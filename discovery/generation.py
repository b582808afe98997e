"""The commands ``discovery train`` and ``discovery sample``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from discovery.errors import ConfigError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from discovery.protocols import Generator, TrainableGenerator
    from discovery.types import Checkpoint, LabelledCrystal, Target

GeneratorOption = Annotated[str, typer.Option(help="Name of the generator.")]
CheckpointOption = Annotated[Path | None, typer.Option(help="Weights; those of the package by default.")]
SettingsArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings of the generator, such as steps=50.")
]


def create_generator(name: str, checkpoint: Path | None, settings: "Sequence[str]") -> "Generator":
    """Construct a generator from settings of the command line."""
    from discovery import plugins
    from discovery.config import parse_options

    plugin = plugins.load("generators", name)
    given = [*settings, *([f"checkpoint={checkpoint}"] if checkpoint is not None else [])]
    generator: Generator = plugin(parse_options(plugin.Config, given))
    return generator


DataArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="DATA... [KEY=VALUE]...",
        help="Crystals: CSV files with a column cif, JSON files of entries, run folders. Then settings, "
        "such as variant=unet3d training.steps=5000 training.zero_stage=1.",
    ),
]
ValidationOption = Annotated[
    list[Path] | None, typer.Option(help="Held-out crystals; by default a random part of DATA.")
]
ValidationFractionOption = Annotated[float, typer.Option(min=0.0, max=0.9, help="Size of that part.")]
LeaveOutOption = Annotated[
    str | None, typer.Option(help="Chemical system, such as Mg-Si-Ge, whose crystals are left out.")
]
SplitSeedOption = Annotated[int, typer.Option(help="Of the split; training.seed is that of the training.")]


@dataclass(frozen=True)
class TrainingJob:
    """A generator and the data that it is to be trained on.

    Parameters
    ----------
    generator
        Name of the generator.
    crystals, validation
        What to train on and what to judge by.
    metadata
        JSON object stored with the weights.
    """

    generator: str
    crystals: "Sequence[LabelledCrystal]"
    validation: "Sequence[LabelledCrystal]"
    metadata: "Mapping[str, Any]"

    @classmethod
    def read(
        cls,
        generator: str,
        paths: "Sequence[Path]",
        *,
        validation: "Sequence[Path]" = (),
        validation_fraction: float = 0.05,
        leave_out: str | None = None,
        seed: int = 0,
        note: str = "",
    ) -> "TrainingJob":
        """Read the data; the options are those of ``discovery train``.

        Raises
        ------
        ConfigError
            If the generator has no weights to train.
        InvalidInputError
            If there is nothing to train on.
        """
        from discovery.training_data import read_training_data, split, without_system

        _trainable(generator)
        if not paths:
            raise InvalidInputError(
                "there is nothing to train on; name a CSV file, a JSON file of entries or a run folder"
            )
        crystals = [item for path in paths for item in read_training_data(path)]
        if leave_out is not None:
            crystals = without_system(crystals, leave_out.split("-"))
        if validation:
            held_out = [item for path in validation for item in read_training_data(path)]
        else:
            crystals, held_out = split(crystals, validation_fraction, seed)
        metadata = {
            "data": [path.name for path in paths],
            "validation": [path.name for path in validation],
            "left_out": leave_out,
            "n_train": len(crystals),
            "n_validation": len(held_out),
            "note": note,
        }
        return cls(generator, crystals, held_out, metadata)

    def run(
        self, config: Any, folder: Path, on_validation: "Callable[[int, float], None] | None" = None
    ) -> "Checkpoint":
        """Train, going on with what `folder` holds."""
        return _trainable(self.generator).train(
            self.crystals,
            self.validation,
            config=config,
            folder=folder,
            metadata=self.metadata,
            on_validation=on_validation,
        )


def _trainable(generator: str) -> "TrainableGenerator":
    from discovery import plugins
    from discovery.protocols import TrainableGenerator

    plugin = plugins.load("generators", generator)
    if not isinstance(plugin, TrainableGenerator):
        raise ConfigError(f"the generator {generator!r} has no weights to train; choose another with --generator")
    return plugin


def training_config(generator: str, settings: "Sequence[str]", file: Path | None = None) -> Any:
    """Return the training configuration of a generator from ``key=value``, which win over a YAML file's, checked."""
    from discovery.config import parse_options

    return parse_options(_trainable(generator).TrainConfig, settings, file)


def split_arguments(arguments: "Sequence[str]") -> tuple[list[Path], list[str]]:
    """Return the paths and the settings (``key=value``) among the arguments of a command."""
    return [Path(item) for item in arguments if "=" not in item], [item for item in arguments if "=" in item]


def train(
    data: DataArgument,
    out: Annotated[Path, typer.Option(help="Folder for state, log and checkpoint; a training goes on from there.")],
    generator: GeneratorOption = "unimat",
    config: Annotated[
        Path | None, typer.Option(help="YAML file of settings, such as `discovery tune` writes; KEY=VALUE wins.")
    ] = None,
    validation: ValidationOption = None,
    validation_fraction: ValidationFractionOption = 0.05,
    leave_out: LeaveOutOption = None,
    seed: SplitSeedOption = 0,
    note: Annotated[str, typer.Option(help="Kept in the checkpoint: licence and remarks on the data.")] = "",
    workers: Annotated[
        int, typer.Option(min=1, help="Processes that train together, each with a batch of its own; through Ray Train.")
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(help="Of a running Ray cluster, or auto; this machine by default. For several workers."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Train a generator from scratch, or go on with a training that was interrupted."""
    paths, settings = split_arguments(data)
    options = training_config(generator, settings, config)
    job = TrainingJob.read(
        generator,
        paths,
        validation=validation or (),
        validation_fraction=validation_fraction,
        leave_out=leave_out,
        seed=seed,
        note=note,
    )
    if workers > 1:
        from discovery.distributed import train_on_workers

        typer.echo(f"{workers} workers are training; losses by step go to {out / 'log.jsonl'}", err=True)
        checkpoint = train_on_workers(job, options, out, workers=workers, address=address)
    else:
        checkpoint = job.run(options, out)
    result = {"checkpoint": checkpoint.path, "sha256": checkpoint.sha256, **checkpoint.metrics}
    if as_json:
        typer.echo(json.dumps(result))
        return
    for name, value in result.items():
        typer.echo(f"{name}: {value:.6g}" if isinstance(value, float) else f"{name}: {value}")


def sample(
    out: Annotated[Path, typer.Option(help="Folder for one CIF file per crystal.")],
    settings: SettingsArgument = None,
    composition: Annotated[str | None, typer.Option(help="Atoms in the cell, such as Mg2Si or Mg4Si2.")] = None,
    elements: Annotated[
        str | None, typer.Option(help="Elements to choose from, such as Mg-Si; all of them if no composition is given.")
    ] = None,
    n: Annotated[int, typer.Option("--n", min=1, help="How many crystals.")] = 16,
    generator: GeneratorOption = "unimat",
    checkpoint: CheckpointOption = None,
    guidance: Annotated[
        list[str] | None,
        typer.Option(help="Wanted property, such as e_above_hull=0 or space_group=Fm-3m; may be repeated."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Equal seeds give equal crystals.")] = 0,
) -> None:
    """Sample crystals of a composition, of chosen elements or of any, and write them as CIF files."""
    from pymatgen.io.cif import CifWriter

    target = _target(composition, elements, n, guidance or [])
    samples = create_generator(generator, checkpoint, settings or []).sample([target], seed=seed)
    reason = ""
    try:
        out.mkdir(parents=True, exist_ok=True)
        for number, item in enumerate(samples):
            if item.crystal is None:
                reason = item.failure.message if item.failure is not None else "no crystal"
                typer.echo(f"sample {number}: {reason}", err=True)
                continue
            path = out / f"{item.crystal.formula}_{number:03d}.cif"
            CifWriter(item.crystal.to_structure(), significant_figures=10).write_file(path)
            typer.echo(path)
    except OSError as error:
        raise InvalidInputError(
            f"{out} cannot be written: {error.strerror}; choose another folder with --out"
        ) from error
    if all(item.crystal is None for item in samples):
        raise InvalidInputError(f"none of the {n} samples gave a crystal; the last one because: {reason}")


def _target(composition: str | None, elements: str | None, n: int, guidance: "Sequence[str]") -> "Target":
    from pymatgen.core import Element

    from discovery.types import Target

    if composition is not None and elements is not None:
        raise InvalidInputError("give --composition, such as Mg2Si, or --elements, such as Mg-Si, not both")
    wanted = dict(_wanted(text) for text in guidance)
    if composition is None:
        chosen = elements.split("-") if elements is not None else [Element.from_Z(z).symbol for z in range(1, 119)]
        return Target(n, elements=tuple(chosen), guidance=wanted)
    return Target(n, composition=whole_atoms(composition, "--composition"), guidance=wanted)


def whole_atoms(formula: str, where: str) -> dict[str, int]:
    """Return element → number of atoms of a formula such as Mg2Si; `where` names it in errors."""
    from pymatgen.core import Composition, Element

    try:
        amounts = Composition(formula).get_el_amt_dict()
    except ValueError as error:
        raise InvalidInputError(f"{where} {formula}: {error}") from error
    unknown = [element for element in amounts if not Element.is_valid_symbol(element)]
    if unknown:
        raise InvalidInputError(f"{where} {formula}: {unknown[0]} is not an element")
    if not amounts or any(amount != int(amount) for amount in amounts.values()):
        raise InvalidInputError(f"{where} {formula}: needs whole numbers of atoms, such as Mg2Si")
    return {element: int(amount) for element, amount in amounts.items()}


def _wanted(text: str) -> tuple[str, float]:
    """Return name and value of a wanted property; a space group is named by its number or its symbol."""
    from pymatgen.symmetry.groups import SpaceGroup

    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError as error:
        if name != "space_group":
            raise InvalidInputError(f"--guidance {text}: write PROPERTY=NUMBER, such as e_above_hull=0") from error
    try:
        return name, float(SpaceGroup(value).int_number)
    except ValueError as error:
        raise InvalidInputError(f"--guidance {text}: {error}; write a symbol such as Fm-3m, or its number") from error
