"""Sets of crystals in files of many kinds: what is evaluated, compared, and placed on hulls.

Nothing is dropped: a file, row or frame that cannot be used becomes a member that says why.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import sys
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
from ase import Atoms
from ase.io import read
from pymatgen.core import Composition, Element, Structure

from discovery.corrections import MP2020, corrected_scale, corrections_of_entry
from discovery.crystal import CRYSTAL_FORMAT, Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.runfolder import RunFolder
from discovery.types import EnergyScale

FORMULA_COLUMNS = ("pretty_formula", "formula", "formula_pretty", "composition")
ID_COLUMNS = ("material_id", "entry_id", "id", "name")
STRUCTURE_SUFFIXES = (".cif", ".vasp", ".poscar")
FRAME_SUFFIXES = (".xyz", ".extxyz")
MAX_FILE_BYTES = 50 * 2**20
"""Largest structure file inside an archive that is unpacked."""


class Energies(NamedTuple):
    """Energies of a member, eV/atom, as far as its file gives them.

    `corrections`, name → eV/atom, are contained in `total`; None if the file does not tell. `problem` says why there is
    no `total` although the file gives one.
    """

    total: float | None = None
    formation: float | None = None
    above_hull: float | None = None
    scale: EnergyScale | None = None
    corrections: Mapping[str, float] | None = None
    problem: str | None = None


NO_ENERGIES = Energies()


@dataclass(frozen=True)
class Member:
    """One requested crystal of a set.

    Parameters
    ----------
    id
        Unique within the set.
    crystal
        None if there is none, or it cannot be used.
    composition
        Element symbol → amount; may be known without a crystal.
    energies
        Energies that the file gives.
    problem
        Why there is no crystal.
    """

    id: str
    crystal: Crystal | None
    composition: Mapping[str, float] | None = None
    energies: Energies = NO_ENERGIES
    problem: str | None = None


@dataclass(frozen=True)
class CrystalSet:
    """Members in the order of their source, which is named by `path` and `sha256` of its content."""

    path: Path
    sha256: str
    members: tuple[Member, ...]

    @property
    def crystals(self) -> dict[str, Crystal]:
        """Id → crystal of all members that have one."""
        return {member.id: member.crystal for member in self.members if member.crystal is not None}


def read_set(
    path: Path,
    *,
    crystals: bool = True,
    corrections: bool = False,
    limit: int | None = None,
    progress: Callable[[], None] | None = None,
) -> CrystalSet:
    """Read a set of crystals.

    Parameters
    ----------
    path
        A folder of CIF, POSCAR and extxyz files, the run folder of a campaign, a zip archive of CIF files, or a file:
        extxyz, CSV with a column ``cif`` or a formula, JSON list of pymatgen entries or structures or of crystals, CIF.
        Files may be compressed by gzip.
    crystals
        False skips the structures of a CSV file whose formulas are given; compositions and energies remain.
    corrections
        Correct the total energies of entries by MP2020, from their uncorrected energies and once, whatever corrections
        they have. Those of an energy scale that contains MP2020 stay as they are.
    limit
        Only so many members, the first ones.
    progress
        Called after each member.

    Raises
    ------
    InvalidInputError
        If `path` does not exist or is of no known kind, or two members have the same id.
    EnergyScaleError
        If energies are to be corrected of which the file does not tell how they were computed.
    """
    if not path.exists():
        raise InvalidInputError(f"{path} does not exist; name a folder, an archive or a file of crystals")
    members: list[Member] = []
    seen: set[str] = set()
    for member in islice(_reader(path, corrections)(path, crystals), limit):
        members.append(member)
        if progress is not None:
            progress()
        if member.id in seen:
            raise InvalidInputError(f"{path}: id {member.id!r} occurs twice; give each crystal an id of its own")
        seen.add(member.id)
        if corrections and _unknown_corrections(member.energies):
            raise EnergyScaleError(
                f"{path}: the total energy of {member.id!r} cannot be corrected, because only JSON entries tell how "
                "their energies were computed; give entries, or leave --corrections out"
            )
    return CrystalSet(path, _hash(path), tuple(members))


def _unknown_corrections(energies: Energies) -> bool:
    named = energies.scale is not None and energies.scale.corrections == MP2020
    return energies.total is not None and energies.corrections is None and not named


_Reader = Callable[[Path, bool], Iterator[Member]]


def _reader(path: Path, corrections: bool = False) -> _Reader:
    if path.is_dir():
        return _campaign if RunFolder(path).holds_campaign else _folder
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if suffixes[-1:] == [".gz"] and len(suffixes) > 1 else (suffixes[-1] if suffixes else "")
    readers: dict[str, _Reader] = {".zip": _archive, ".csv": _csv, ".json": partial(_json, corrections)}
    readers |= dict.fromkeys(FRAME_SUFFIXES, _frames) | dict.fromkeys(STRUCTURE_SUFFIXES, _structure_file)
    if kind not in readers:
        raise InvalidInputError(
            f"{path} is of no known kind; expected a folder or one of {', '.join(sorted(readers))}, also with .gz"
        )
    return readers[kind]


def _hash(path: Path) -> str:
    if not path.is_dir():
        return hashlib.sha256(path.read_bytes()).hexdigest()
    if RunFolder(path).holds_campaign:
        return _campaign_hash(path)
    digest = hashlib.sha256()
    for file in sorted(file for file in path.iterdir() if file.is_file()):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _campaign_hash(path: Path) -> str:
    """Hash what a campaign has decided so far: its configuration and every arrow of its candidates."""
    store = RunFolder(path).read_store()
    try:
        content = [store.campaign().config_hash, *sorted(store.transitions(), key=lambda arrow: (arrow[0], arrow[2]))]
    finally:
        store.close()
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


def _open(path: Path) -> io.TextIOBase:
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        return io.StringIO(text.decode(), newline="")
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} cannot be read ({error}); it must be text, or gzip-compressed text") from error


def _member(id_: str, make: Callable[[], Crystal], energies: Energies = NO_ENERGIES) -> Member:
    """Return a member with the crystal that `make` returns, or with the reason why it cannot."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            crystal = make()
    except Exception as error:  # readers of foreign files fail in many ways, none of which may end the evaluation
        reason = str(error) if isinstance(error, InvalidInputError) else f"unreadable: {error or type(error).__name__}"
        return Member(id_, None, None, energies, reason)
    return Member(id_, crystal, crystal.composition.as_dict() if len(crystal) else None, energies)


def _of_text(text: str, suffix: str) -> Crystal:
    return Crystal.from_structure(Structure.from_str(text, fmt="cif" if suffix == ".cif" else "poscar"))


def _structure_file(path: Path, _crystals: bool) -> Iterator[Member]:
    suffix = next(s for s in (suffix.lower() for suffix in reversed(path.suffixes)) if s != ".gz")
    yield _member(path.name, lambda: _of_text(_open(path).read(), suffix))


def _folder(path: Path, crystals: bool) -> Iterator[Member]:
    files = [file for file in sorted(path.iterdir()) if file.suffix.lower() in (*STRUCTURE_SUFFIXES, *FRAME_SUFFIXES)]
    if not files:
        raise InvalidInputError(f"{path} holds no campaign and no .cif, .vasp, .poscar, .xyz or .extxyz file")
    for file in files:
        yield from _reader(file)(file, crystals)


def _archive(path: Path, _crystals: bool) -> Iterator[Member]:
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                suffix = Path(info.filename).suffix.lower()
                if suffix not in STRUCTURE_SUFFIXES:
                    continue

                def crystal(info: zipfile.ZipInfo = info, suffix: str = suffix) -> Crystal:
                    if info.file_size > MAX_FILE_BYTES:
                        raise InvalidInputError(f"it has {info.file_size} bytes, more than {MAX_FILE_BYTES}")
                    return _of_text(archive.read(info).decode(), suffix)

                yield _member(info.filename, crystal)
    except (zipfile.BadZipFile, OSError) as error:
        raise InvalidInputError(f"{path} is no readable zip archive ({error})") from error


def _frames(path: Path, _crystals: bool) -> Iterator[Member]:
    """Read the frames of an extxyz file one by one, so that a broken one does not take the others with it."""
    lines = _open(path).read().splitlines()
    position = number = 0
    while position < len(lines):
        if not lines[position].strip():
            position += 1
            continue
        if lines[position].strip().isdecimal():
            length = int(lines[position]) + 2
        else:
            problem = f"unreadable from line {position + 1} on, which is no number of atoms"
            yield Member(f"{path.name}:{number}", None, problem=problem)
            return
        text = "\n".join(lines[position : position + length]) + "\n"
        position += length
        found: dict[str, Any] = {}

        def crystal(text: str = text, found: dict[str, Any] = found) -> Crystal:
            atoms = cast(Atoms, read(io.StringIO(text), format="extxyz"))
            results = atoms.calc.results if atoms.calc is not None else {}
            found.update(atoms.info | {"energy": results.get("energy", atoms.info.get("energy"))})
            if atoms.cell.rank != 3:
                raise InvalidInputError("the frame has no three-dimensional cell")
            return Crystal.from_atoms(atoms)

        member = _member(f"{path.name}:{number}", crystal)
        n_atoms = len(member.crystal) if member.crystal is not None else 0
        total = _number(found.get("energy"))
        yield Member(
            str(found.get("id") or member.id),
            member.crystal,
            member.composition,
            Energies(
                total / n_atoms if total is not None and n_atoms else None,
                _number(found.get("formation_energy_per_atom")),
                _number(found.get("e_above_hull")),
            ),
            member.problem,
        )
        number += 1


def _csv(path: Path, crystals: bool) -> Iterator[Member]:
    csv.field_size_limit(sys.maxsize)
    with _open(path) as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        formula = next((column for column in FORMULA_COLUMNS if column in columns), None)
        if "cif" not in columns and formula is None:
            raise InvalidInputError(
                f"{path} has neither a column 'cif' nor a formula; its columns are: {', '.join(columns) or 'none'}"
            )
        identifier = next((column for column in ID_COLUMNS if column in columns), None)
        for number, row in enumerate(reader, start=1):
            id_ = (row[identifier] if identifier else "") or f"row-{number}"
            energies = Energies(
                _number(row.get("energy_per_atom")),
                _number(row.get("formation_energy_per_atom")),
                _number(row.get("e_above_hull") or row.get("energy_above_hull")),
            )
            if "cif" in columns and (crystals or formula is None):
                yield _member(id_, partial(_of_cif_cell, row["cif"]), energies)
                continue
            try:
                amounts = _amounts(Composition(row[formula or ""] or ""))
            except (ValueError, KeyError, TypeError, InvalidInputError) as error:
                yield Member(id_, None, None, energies, f"unreadable formula: {error}")
                continue
            total = _number(row.get("energy"))
            if energies.total is None and total is not None:
                energies = energies._replace(total=total / sum(amounts.values()))
            yield Member(id_, None, amounts, energies, "the file gives a formula, no crystal")


def _of_cif_cell(text: str | None) -> Crystal:
    if not text:
        raise InvalidInputError("the cif is empty")
    return _of_text(text, ".cif")


def _json(corrections: bool, path: Path, _crystals: bool) -> Iterator[Member]:
    with _open(path) as file:
        try:
            data = json.load(file)
        except (json.JSONDecodeError, RecursionError) as error:
            raise InvalidInputError(f"{path} is not JSON ({error})") from error
    if not isinstance(data, list):
        raise InvalidInputError(f"{path} holds no list; expected a list of entries, structures or crystals")
    for number, item in enumerate(data, start=1):
        if not isinstance(item, dict):
            yield Member(f"entry-{number}", None, problem="unreadable: not an entry, structure or crystal")
            continue
        yield _entry(item, number, corrections)


def _entry(item: Mapping[str, Any], number: int, corrections: bool) -> Member:
    id_ = str(item.get("entry_id") or item.get("name") or item.get("id") or f"entry-{number}")
    if item.get("format") == CRYSTAL_FORMAT:
        return _member(id_, lambda: Crystal.from_dict(item))
    if "lattice" in item and "sites" in item:
        return _member(id_, lambda: Crystal.from_structure(Structure.from_dict(dict(item))))
    try:
        energies, amounts = _entry_energies(item, corrections)
    except (ValueError, TypeError, KeyError, AttributeError, InvalidInputError) as error:
        return Member(id_, None, problem=f"unreadable entry: {type(error).__name__}: {error}")
    structure = item.get("structure")
    if structure is None:
        return Member(id_, None, amounts, energies, "the file gives a composition, no crystal")
    member = _member(id_, lambda: Crystal.from_structure(Structure.from_dict(structure)), energies)
    return Member(id_, member.crystal, amounts, energies, member.problem)


def _entry_energies(item: Mapping[str, Any], corrections: bool) -> tuple[Energies, dict[str, float]]:
    """Return the energies, corrections included, and the composition of a pymatgen entry's dictionary.

    With `corrections` they are those of MP2020 instead of the entry's own.
    """
    structure = Structure.from_dict(item["structure"]) if item.get("structure") is not None else None
    if "composition" in item:
        composition = Composition(item["composition"])
    elif structure is not None:
        composition = structure.composition
    else:
        raise InvalidInputError("it has neither 'composition' nor 'structure'")
    amounts = _amounts(composition)
    n_atoms = sum(amounts.values())
    energy, problem = _number(item.get("energy")), None
    data = item.get("data") or {}
    parameters = item.get("parameters") or {}
    named = parameters.get("energy_scale") or item.get("energy_scale")
    scale = EnergyScale(**named) if isinstance(named, dict) else None
    try:
        if corrections and energy is not None and (scale is None or scale.corrections != MP2020):
            scale = corrected_scale(scale) if scale is not None else None
            contained = corrections_of_entry(composition, structure, parameters, data)
        else:
            contained = _own_corrections(item)
    except InvalidInputError as error:
        energy, problem, contained = None, str(error), {}
    return Energies(
        None if energy is None else (energy + sum(contained.values())) / n_atoms,
        _number(data.get("formation_energy_per_atom")),
        _number(data.get("e_above_hull", data.get("energy_above_hull"))),
        scale,
        {name: value / n_atoms for name, value in contained.items()},
        problem,
    ), amounts


def _own_corrections(item: Mapping[str, Any]) -> dict[str, float]:
    """Return name → eV per cell of the corrections that an entry brings."""
    found: dict[str, float] = {}
    for adjustment in item.get("energy_adjustments") or []:
        name = str(adjustment.get("name") or "unnamed")
        found[name] = found.get(name, 0.0) + _adjustment(adjustment)
    if not found and item.get("correction"):
        found["correction"] = float(item["correction"])
    return found


def _adjustment(adjustment: Mapping[str, Any]) -> float:
    if "value" in adjustment:
        return float(adjustment["value"])
    if "adj_per_atom" in adjustment:
        return float(adjustment["adj_per_atom"]) * float(adjustment["n_atoms"])
    if "adj_per_deg" in adjustment:
        return float(adjustment["adj_per_deg"]) * float(adjustment["temp"]) * float(adjustment["n_atoms"])
    raise InvalidInputError(f"energy adjustment {adjustment.get('name')!r} is of an unknown kind")


def _campaign(path: Path, _crystals: bool) -> Iterator[Member]:
    """All candidates of a campaign, as they were sampled, with the energies of the best oracle that computed them."""
    store = RunFolder(path).read_store()
    try:
        candidates = store.candidates()
        for candidate in candidates:
            evaluation = candidate.reference or candidate.screening
            formation = candidate.screening_formation_energy_per_atom
            above = None
            if candidate.verdict is not None:
                formation, above = candidate.verdict.formation_energy_per_atom, candidate.verdict.e_above_hull
            energies = Energies(
                evaluation.energy_per_atom if evaluation is not None and evaluation.ok else None,
                formation,
                above,
                evaluation.energy_scale if evaluation is not None else None,
            )
            composition = candidate.crystal.composition.as_dict()
            yield Member(candidate.id, candidate.crystal, composition, energies)
        n_missing = store.funnel()["sampled"] - len(candidates)
        for number in range(1, n_missing + 1):
            yield Member(f"no-crystal-{number}", None, problem="the generator gave no crystal")
    finally:
        store.close()


def _amounts(composition: Composition) -> dict[str, float]:
    amounts: dict[str, float] = {}
    for species, amount in composition.items():
        element = getattr(species, "element", species)
        if not isinstance(element, Element):
            raise InvalidInputError(f"{species} is not an element")
        amounts[element.symbol] = amounts.get(element.symbol, 0.0) + float(amount)
    if not amounts:
        raise InvalidInputError("it has no atoms; the formula is empty")
    return amounts


def _number(value: Any) -> float | None:
    """Return a finite float, or None."""
    if value is None or value == "":
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if np.isfinite(number) else None
