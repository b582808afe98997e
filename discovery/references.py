"""Known crystals that a hull is built from before anything is discovered.

A source gives crystals only; the campaign evaluates them with each of its oracles, so that no energy of another scale
enters a hull. Whatever the source, every element of the chemical space is there.
"""

from __future__ import annotations

import csv
import gzip
import json
import logging
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations, permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO, cast

import numpy as np
from ase import Atoms
from ase.build import bulk
from ase.data import atomic_numbers, reference_states
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pymatgen.core import Composition, Element, Structure

from discovery.crystal import Crystal
from discovery.errors import InvalidInputError, MissingDependencyError
from discovery.matching import Matcher

logger = logging.getLogger(__name__)

Source = Literal["elements", "prototypes", "csv", "entries", "materials_project"]

MOLECULE_BOX = 8.0
"""Å; edge of the cubic box around a diatomic molecule."""

AVOGADRO_CM3_TO_ANGSTROM3 = 1.0 / 0.602214076
"""Molar volume in cm³/mol → volume per atom in Å³."""

FORMULA_COLUMNS = ("pretty_formula", "formula", "formula_pretty", "composition")
_CIF_FORMULA = re.compile(r"^_chemical_formula_sum[ \t]+'?([A-Z][A-Za-z0-9. ]*)'?[ \t\r]*$", re.MULTILINE)
PROPERTY_COLUMNS = {
    "formation_energy_per_atom": "formation_energy_per_atom",
    "e_above_hull": "e_above_hull",
    "energy_above_hull": "e_above_hull",
    "band_gap": "band_gap",
}
"""Numeric columns that are kept, and the property each becomes."""


class AflowPrototype(NamedTuple):
    """A structure of the AFLOW prototype library, as bundled with pymatgen."""

    label: str
    formula: str


GRAPHITE = AflowPrototype("A_hP4_194_bc", "C")
DHCP = AflowPrototype("A_hP4_194_ac", "La")
FCC = AflowPrototype("A_cF4_225_a", "Cu")
BCC = AflowPrototype("A_cI2_229_a", "W")
DIAMOND = AflowPrototype("A_cF8_227_a", "C")
IODINE = AflowPrototype("A_oC8_64_f", "I")
TRIGONAL_SELENIUM = AflowPrototype("A_hP3_152_a", "Se")

ElementalForm = Literal["molecule", "standard"] | AflowPrototype

ELEMENTAL_FORMS: Mapping[str, tuple[ElementalForm, ...]] = {
    "H": ("molecule",),
    "He": (FCC,),
    "B": (AflowPrototype("A_hR12_166_2h", "B"),),
    "C": (GRAPHITE, "standard"),
    "N": ("molecule", AflowPrototype("A_cP8_205_c", "N2")),
    "O": ("molecule", AflowPrototype("A_mC4_12_i", "O2")),
    "F": ("molecule",),
    "P": (AflowPrototype("A_oC8_64_f", "P"),),
    "S": (AflowPrototype("A_oF128_70_4h", "S"), TRIGONAL_SELENIUM),
    "Cl": ("molecule", IODINE),
    "Mn": (AflowPrototype("A_cI58_217_ac2g", "Mn"), AflowPrototype("A_cP20_213_cd", "Mn"), FCC),
    "Ga": (AflowPrototype("A_oC8_64_f", "Ga"),),
    "Se": (TRIGONAL_SELENIUM,),
    "Br": ("molecule", IODINE),
    "Sn": (DIAMOND, "standard"),
    "Te": (TRIGONAL_SELENIUM,),
    "I": (IODINE,),
    "La": (DHCP,),
    "Pr": (DHCP, "standard"),
    "Nd": (DHCP, "standard"),
    "Pm": (DHCP,),
    "Rn": (FCC,),
    "Ra": (BCC,),
    "Pa": (AflowPrototype("A_tI2_139_a", "Pa"),),
    "U": (AflowPrototype("A_oC4_63_c", "U"),),
    "Np": (AflowPrototype("A_oP8_62_2c", "Np"),),
    "Pu": (AflowPrototype("A_mP16_11_8e", "Pu"), AflowPrototype("A_oF8_70_a", "Pu")),
    "Am": (DHCP,),
    "Cm": (DHCP,),
    "Bk": (DHCP,),
    "Cf": (DHCP,),
}
"""Forms of the elements for which ASE's ``reference_states`` has no crystal, or not the only sensible one.

``standard`` is ASE's crystal with experimental lattice constants, which serves all other elements. A prototype of
another element is scaled to the element's molar volume. Nothing is known of At, Fr, Es and the elements beyond.
"""

MOLECULAR_BOND_LENGTHS = {"H": 0.741, "N": 1.098, "O": 1.208, "F": 1.412, "Cl": 1.988, "Br": 2.281}
"""Å; experimental (Huber and Herzberg, Constants of Diatomic Molecules, 1979)."""

PROTOTYPES: Mapping[str, AflowPrototype] = {
    "rocksalt": AflowPrototype("AB_cF8_225_a_b", "NaCl"),
    "CsCl": AflowPrototype("AB_cP2_221_b_a", "CsCl"),
    "zincblende": AflowPrototype("AB_cF8_216_c_a", "ZnS"),
    "wurtzite": AflowPrototype("AB_hP4_186_b_b", "ZnS"),
    "NiAs": AflowPrototype("AB_hP4_194_c_a", "NiAs"),
    "L1_0": AflowPrototype("AB_tP2_123_a_d", "CuAu"),
    "CrB": AflowPrototype("AB_oC8_63_c_c", "CrB"),
    "fluorite": AflowPrototype("AB2_cF12_225_a_c", "CaF2"),
    "rutile": AflowPrototype("A2B_tP6_136_f_a", "TiO2"),
    "CdI2": AflowPrototype("AB2_hP3_164_a_d", "CdI2"),
    "AlB2": AflowPrototype("AB2_hP3_191_a_d", "AlB2"),
    "MoSi2": AflowPrototype("AB2_tI6_139_a_e", "Si2Mo"),
    "MgCu2": AflowPrototype("A2B_cF24_227_d_a", "MgCu2"),
    "Co2Si": AflowPrototype("A2B_oP12_62_2c_c", "Co2Si"),
    "L1_2": AflowPrototype("AB3_cP4_221_a_c", "Cu3Au"),
    "D0_3": AflowPrototype("AB3_cF16_225_a_bc", "BiF3"),
    "D0_19": AflowPrototype("A3B_hP8_194_h_c", "Ni3Sn"),
    "D0_22": AflowPrototype("A3B_tI8_139_bd_a", "TiAl3"),
    "ReO3": AflowPrototype("A3B_cP4_221_d_a", "ReO3"),
    "corundum": AflowPrototype("A2B3_hR10_167_c_e", "Al2O3"),
    "perovskite": AflowPrototype("AB3C_cP5_221_a_c_b", "CaTiO3"),
    "half_Heusler": AflowPrototype("ABC_cF12_216_b_c_a", "MgAgAs"),
    "Heusler": AflowPrototype("AB2C_cF16_225_a_c_b", "MnAlCu2"),
    "layered_ABX2": AflowPrototype("ABC2_hR4_166_a_b_c", "NaCrS2"),
    "chalcopyrite": AflowPrototype("ABC2_tI16_122_a_b_d", "FeCuS2"),
    "ilmenite": AflowPrototype("AB3C_hR10_148_c_f_c", "TiFeO3"),
    "spinel": AflowPrototype("A2BC4_cF56_227_d_a_e", "MgAl2O4"),
}
"""Common structure types by name: binary ones first, each group in order of increasing number of atoms per formula."""


class ReferencesConfig(BaseModel):
    """Where the reference phases of a campaign come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source = Field(
        "elements",
        description="What is added to the elements. elements: nothing; prototypes: common structure types of "
        "them; csv, entries: crystals of a file; materials_project: those of the Materials Project (needs MP_API_KEY)",
    )
    path: Path | None = Field(None, description="File for csv (.csv, .csv.gz) and entries (.json, .json.gz)")
    max_atoms: int = Field(
        32, ge=1, description="Largest reference cell; an element whose forms are all larger keeps its smallest"
    )
    max_e_above_hull: float = Field(
        0.1,
        ge=0.0,
        description="eV/atom; phases that their source says are higher are left out",
    )
    max_phases: int | None = Field(
        None, ge=1, description="Largest number of compounds: the most stable, or the first prototypes in their order"
    )
    prototypes: tuple[str, ...] = Field(
        tuple(PROTOTYPES), description="Structure types for source prototypes: " + ", ".join(PROTOTYPES)
    )
    thermo_type: str = Field("GGA_GGA+U", description="Materials Project thermodynamic data set")

    @model_validator(mode="after")
    def _complete(self) -> ReferencesConfig:
        if self.source in ("csv", "entries") and self.path is None:
            raise ValueError(f"source {self.source} needs a file: set path")
        if unknown := sorted(set(self.prototypes) - set(PROTOTYPES)):
            raise ValueError(f"unknown prototypes {', '.join(unknown)}; known are {', '.join(PROTOTYPES)}")
        return self


@dataclass(frozen=True)
class ReferenceCrystal:
    """A known crystal.

    Parameters
    ----------
    id
        Unique within one source, for example ``element:Mg:standard`` or ``mp-1367``.
    crystal
        Its geometry, before any relaxation.
    source
        Where it is from.
    properties
        What the source says of it, on the source's own energy scale: ``formation_energy_per_atom``, ``e_above_hull``
        (eV/atom), ``band_gap`` (eV).
    """

    id: str
    crystal: Crystal
    source: str
    properties: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class SkippedRow:
    """A row that could not be used; `row` counts data rows from 1."""

    row: int
    reason: str


@dataclass(frozen=True)
class CsvContent:
    """The crystals of a CSV file, in its order, and the rows that could not be used."""

    crystals: tuple[ReferenceCrystal, ...]
    skipped: tuple[SkippedRow, ...]


def reference_crystals(elements: Sequence[str], config: ReferencesConfig) -> list[ReferenceCrystal]:
    """Return the known crystals of the space of `elements`: at least one per element, then compounds.

    Raises
    ------
    InvalidInputError
        If an element is unknown or has no bundled crystal, or a file cannot be read.
    MissingDependencyError
        If the Materials Project is asked for without an API key.
    """
    _check_elements(elements)
    found = [] if config.source == "elements" else _COMPOUND_SOURCES[config.source](tuple(elements), config)
    fitting = [known for known in found if len(known.crystal) <= config.max_atoms]
    present = {next(iter(known.crystal.composition)).symbol for known in fitting if len(known.crystal.composition) == 1}
    bundled = [form for element in elements if element not in present for form in _forms(element, config.max_atoms)]
    elemental = [known for known in fitting if len(known.crystal.composition) == 1]
    compounds = [known for known in fitting if len(known.crystal.composition) > 1]
    if config.max_phases is not None:
        compounds = sorted(compounds, key=lambda known: known.properties.get("e_above_hull", 0.0))[: config.max_phases]
    return [*bundled, *elemental, *compounds]


def element_crystals(element: str) -> list[ReferenceCrystal]:
    """Return the bundled crystals of an element; the one that an oracle finds lowest is its reference.

    Raises
    ------
    InvalidInputError
        If `element` is not an element, or none of its crystals is bundled.
    """
    _check_elements([element])
    forms = ELEMENTAL_FORMS.get(element, ("standard",))
    return [
        ReferenceCrystal(
            f"element:{element}:{form.label if isinstance(form, AflowPrototype) else form}",
            _elemental_crystal(element, form),
            "elements",
        )
        for form in forms
    ]


def read_csv(
    path: Path,
    elements: Sequence[str] | None = None,
    *,
    max_atoms: int | None = None,
    max_e_above_hull: float | None = None,
    limit: int | None = None,
) -> CsvContent:
    """Read crystals from a CSV file in the format of the CDVAE benchmark files, compressed or not.

    Column ``cif`` is needed; ``material_id``, a formula or list of elements, ``formation_energy_per_atom``,
    ``e_above_hull`` (or ``energy_above_hull``) and ``band_gap`` are used where they are given.

    Parameters
    ----------
    path
        ``.csv`` or ``.csv.gz``.
    elements
        Keep crystals made of these elements alone.
    max_atoms
        Keep cells of at most so many atoms.
    max_e_above_hull
        eV/atom; leave out rows that say they are higher.
    limit
        Stop after so many crystals.

    Raises
    ------
    InvalidInputError
        If the file is missing, empty or without column ``cif``, or if no row that was wanted can be used.
    """
    space = None if elements is None else frozenset(elements)
    crystals: list[ReferenceCrystal] = []
    skipped: list[SkippedRow] = []
    csv.field_size_limit(sys.maxsize)
    with _open_text(path, "references.path") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        if "cif" not in columns:
            raise InvalidInputError(f"{path} has no column 'cif'; its columns are: {', '.join(columns) or 'none'}")
        for number, row in enumerate(reader, start=1):
            if limit is not None and len(crystals) >= limit:
                break
            try:
                if space is not None and (row_elements := _row_elements(row)) is not None and not row_elements <= space:
                    continue
                properties = _row_properties(row)
                if max_e_above_hull is not None and properties.get("e_above_hull", 0.0) > max_e_above_hull:
                    continue
                crystal = _crystal_from_cif(row["cif"])
            except (ValueError, InvalidInputError) as error:
                skipped.append(SkippedRow(number, str(error)))
                continue
            if space is not None and not {element.symbol for element in crystal.composition} <= space:
                continue
            if max_atoms is not None and len(crystal) > max_atoms:
                continue
            identifier = row.get("material_id") or f"row-{number}"
            crystals.append(ReferenceCrystal(identifier, crystal, path.name, properties))
    if skipped and not crystals:
        raise InvalidInputError(
            f"{path}: none of the {len(skipped)} rows that were read is usable; "
            f"row {skipped[0].row}: {skipped[0].reason}"
        )
    return CsvContent(tuple(crystals), tuple(skipped))


def _check_elements(elements: Sequence[str]) -> None:
    if not elements:
        raise InvalidInputError("no elements given; name at least one")
    for element in elements:
        if not Element.is_valid_symbol(element):
            raise InvalidInputError(f"{element!r} is not an element; use symbols such as Mg")


def _forms(element: str, max_atoms: int) -> list[ReferenceCrystal]:
    forms = element_crystals(element)
    return [form for form in forms if len(form.crystal) <= max_atoms] or [min(forms, key=lambda f: len(f.crystal))]


def _elemental_crystal(element: str, form: ElementalForm) -> Crystal:
    if form == "molecule":
        bond = [[0.0, 0.0, 0.0], [0.0, 0.0, MOLECULAR_BOND_LENGTHS[element]]]
        molecule = Atoms(f"{element}2", bond, cell=[MOLECULE_BOX] * 3, pbc=True)
        molecule.center()
        return Crystal.from_atoms(molecule)
    if form == "standard":
        if reference_states[atomic_numbers[element]] is None:
            raise InvalidInputError(
                f"no crystal of the element {element} is bundled; use source csv, entries or materials_project"
            )
        return Crystal.from_atoms(bulk(element))
    structure = _prototype(form)
    own = Composition(form.formula).elements[0].symbol == element
    structure.replace_species(dict.fromkeys(structure.symbol_set, element))
    if not own:
        structure.scale_lattice(len(structure) * _molar_volume_per_atom(element))
    return Crystal.from_structure(structure)


def _molar_volume_per_atom(element: str) -> float:
    return float(Element(element).molar_volume) * AVOGADRO_CM3_TO_ANGSTROM3


@cache
def _library() -> dict[AflowPrototype, Structure]:
    from pymatgen.analysis.prototypes import AFLOW_PROTOTYPE_LIBRARY  # takes seconds to import

    structures = ((entry["tags"]["aflow"], entry["snl"].structure) for entry in AFLOW_PROTOTYPE_LIBRARY)
    return {AflowPrototype(label, s.composition.reduced_formula): s for label, s in structures}


def _prototype(prototype: AflowPrototype) -> Structure:
    structure = _library()[prototype].copy()
    structure.remove_oxidation_states()
    return structure


def _decorated_prototypes(elements: tuple[str, ...], config: ReferencesConfig) -> list[ReferenceCrystal]:
    """Every decoration of each prototype by distinct elements, equal ones once, at a predicted volume."""
    matcher = Matcher(ltol=0.01, stol=0.01, angle_tol=1.0)
    crystals: list[ReferenceCrystal] = []
    for name in config.prototypes:
        prototype = _prototype(PROTOTYPES[name])
        species = sorted(prototype.symbol_set)
        if len(prototype) > config.max_atoms:
            continue
        found: dict[str, Crystal] = {}
        for subset in combinations(sorted(elements), len(species)):
            for decoration in permutations(subset):
                structure = prototype.copy()
                structure.replace_species(dict(zip(species, decoration, strict=True)))
                crystal = Crystal.from_structure(_at_predicted_volume(structure))
                if matcher.find(crystal, found) is None:
                    sites = ",".join(f"{old}={new}" for old, new in zip(species, decoration, strict=True))
                    found[f"prototype:{name}:{sites}"] = crystal
        crystals.extend(ReferenceCrystal(id_, crystal, "prototypes") for id_, crystal in found.items())
    return crystals


def _at_predicted_volume(structure: Structure) -> Structure:
    """Scale to the sum of elemental volumes, then, where all bond parameters are known, by mined bond lengths."""
    from pymatgen.core.structure_prediction.volume_predictor import DLSVolumePredictor

    scaled = structure.copy()
    scaled.scale_lattice(sum(_elemental_volume(site.specie.symbol) for site in structure))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        volume = DLSVolumePredictor().predict(scaled)
    if np.isfinite(volume):
        scaled.scale_lattice(volume)
    return scaled


@cache
def _elemental_volume(element: str) -> float:
    crystal = element_crystals(element)[-1].crystal
    volume = crystal.volume / len(crystal)
    return min(volume, _molar_volume_per_atom(element))


def _csv(elements: tuple[str, ...], config: ReferencesConfig) -> list[ReferenceCrystal]:
    path = cast(Path, config.path)
    content = read_csv(path, elements, max_e_above_hull=config.max_e_above_hull)
    for row in content.skipped:
        logger.warning("%s row %d skipped: %s", path, row.row, row.reason)
    return list(content.crystals)


def _entries(elements: tuple[str, ...], config: ReferencesConfig) -> list[ReferenceCrystal]:
    """Crystals of a JSON list of pymatgen ``ComputedStructureEntry`` dictionaries; their energies are not used."""
    path = cast(Path, config.path)
    with _open_text(path, "references.path") as file:
        try:
            data = json.load(file)
        except json.JSONDecodeError as error:
            raise InvalidInputError(f"{path} is not JSON ({error}); expected ComputedStructureEntry dicts") from error
    if not isinstance(data, list):
        raise InvalidInputError(f"{path} holds no list; expected a JSON list of ComputedStructureEntry dicts")
    found = []
    for number, entry in enumerate(data, start=1):
        try:
            crystal = Crystal.from_structure(Structure.from_dict(entry["structure"]))
        except (KeyError, TypeError, ValueError, InvalidInputError) as error:
            logger.warning("%s entry %d skipped: %s: %s", path, number, type(error).__name__, error)
            continue
        properties = _known_properties(entry.get("data") or {})
        found.append(ReferenceCrystal(str(entry.get("entry_id") or f"entry-{number}"), crystal, path.name, properties))
    if data and not found:
        raise InvalidInputError(f"{path}: none of its {len(data)} entries has a usable 'structure'")
    return _within(found, elements, config.max_e_above_hull)


def _materials_project(elements: tuple[str, ...], config: ReferencesConfig) -> list[ReferenceCrystal]:
    key = os.environ.get("MP_API_KEY")
    if not key:
        raise MissingDependencyError(
            "source materials_project needs an API key: get one at https://materialsproject.org/api and set the "
            "environment variable MP_API_KEY, or use source csv, entries or prototypes"
        )
    found = [
        ReferenceCrystal(
            str(entry.entry_id),
            Crystal.from_structure(entry.structure),
            "materials_project",
            _known_properties(entry.data),
        )
        for entry in _request_entries(key, elements, config)
    ]
    return _within(found, elements, config.max_e_above_hull)


def _request_entries(key: str, elements: tuple[str, ...], config: ReferencesConfig) -> list[Any]:
    from mp_api.client import MPRester
    from mp_api.client.core.exceptions import MPRestError

    criteria = {"thermo_types": [config.thermo_type], "energy_above_hull": (0.0, config.max_e_above_hull)}
    try:
        with MPRester(key, mute_progress_bars=True) as rester:
            return list(
                rester.get_entries_in_chemsys(
                    list(elements),
                    property_data=["energy_above_hull", "formation_energy_per_atom"],
                    additional_criteria=criteria,
                )
            )
    except (MPRestError, OSError) as error:
        raise MissingDependencyError(
            f"the Materials Project gave no entries for {'-'.join(sorted(elements))}: {error}; "
            "check network and MP_API_KEY, or use source csv, entries or prototypes"
        ) from error


_COMPOUND_SOURCES: Mapping[str, Callable[[tuple[str, ...], ReferencesConfig], list[ReferenceCrystal]]] = {
    "prototypes": _decorated_prototypes,
    "csv": _csv,
    "entries": _entries,
    "materials_project": _materials_project,
}


def _within(
    found: Sequence[ReferenceCrystal], elements: Sequence[str], max_e_above_hull: float
) -> list[ReferenceCrystal]:
    return [
        known
        for known in found
        if {element.symbol for element in known.crystal.composition} <= set(elements)
        and known.properties.get("e_above_hull", 0.0) <= max_e_above_hull
    ]


def _row_elements(row: Mapping[str, str]) -> frozenset[str] | None:
    """Elements of a row from its formula or its CIF's, which cost less than the crystal; None if neither tells."""
    formulas = (row[column] for column in FORMULA_COLUMNS if row.get(column))
    formula = next(formulas, None) or next(iter(_CIF_FORMULA.findall(row["cif"] or "")), None)
    return None if formula is None else frozenset(element.symbol for element in Composition(formula).elements)


def _row_properties(row: Mapping[str, str]) -> dict[str, float]:
    return {name: float(row[column]) for column, name in PROPERTY_COLUMNS.items() if row.get(column)}


def _known_properties(data: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(data[column]) for column, name in PROPERTY_COLUMNS.items() if data.get(column) is not None}


def _crystal_from_cif(text: str | None) -> Crystal:
    if not text:
        raise InvalidInputError("the cif is empty")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return Crystal.from_structure(Structure.from_str(text, fmt="cif"))


@contextmanager
def _open_text(path: Path, setting: str) -> Iterator[TextIO]:
    try:
        with gzip.open(path, "rt", encoding="utf-8") if path.suffix == ".gz" else path.open(encoding="utf-8") as file:
            yield cast(TextIO, file)
    except FileNotFoundError as error:
        raise InvalidInputError(f"{path} does not exist; set {setting} to an existing file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read ({error}); {setting} must name a text file or .gz") from error
