"""Writes a campaign's phases in formats that other programs read."""

from __future__ import annotations

import io
import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from discovery.crystal import Crystal
from discovery.errors import RunError
from discovery.hull import Phase
from discovery.runfolder import RunFolder, file_name
from discovery.status import discovered_phases
from discovery.types import Evaluation

if TYPE_CHECKING:
    from ase import Atoms
    from pymatgen.entries.computed_entries import ComputedStructureEntry

Format = Literal["cif", "extxyz", "entries"]


def export(run_dir: Path, format: Format, out: Path | None = None, *, everything: bool = False) -> list[Path]:
    """Write phases of the newest reference hull.

    Parameters
    ----------
    run_dir
        The run folder.
    format
        ``cif``: one file per phase, the cell as it was computed (P1). ``extxyz``: one file for ASE, with energy,
        forces and stress. ``entries``: one JSON file of pymatgen ``ComputedStructureEntry``, with the uncorrected
        energy and the list of corrections.
    out
        Folder for the files; ``RUN/export`` by default.
    everything
        Write all phases of the hull, reference phases included, not only the stable ones that were discovered.

    Returns
    -------
    list of Path
        The files written.
    """
    folder = RunFolder(run_dir)
    store = folder.read_store()
    try:
        if not store.hull_versions("reference"):
            raise RunError(f"{run_dir} has no reference hull yet, so there is nothing to export; `discovery resume` it")
        hull = store.hull("reference")
        threshold = store.campaign().config["campaign"]["stable_threshold"]
        if everything:
            phases = sorted(hull.phases, key=lambda phase: (phase.formula, phase.id))
        else:
            phases = [found.phase for found in discovered_phases(store, threshold)]
        evaluations = store.evaluations("reference")
        distances = {phase.id: hull.judge(phase.id, threshold, threshold).e_above_hull for phase in phases}
    finally:
        store.close()
    out = out if out is not None else folder.path / "export"
    write = {"cif": _write_cif, "extxyz": _write_extxyz, "entries": _write_entries}[format]
    try:
        out.mkdir(parents=True, exist_ok=True)
        return write(out, phases, evaluations, distances)
    except OSError as error:
        raise RunError(
            f"{out} cannot be written: {error.strerror or error}; choose another folder with --out"
        ) from error


def _write_cif(
    out: Path, phases: list[Phase], _evaluations: dict[str, Evaluation], _distances: dict[str, float]
) -> list[Path]:
    from pymatgen.io.cif import CifWriter

    paths = []
    for phase in phases:
        if phase.crystal is not None:
            path = out / f"{phase.formula}_{file_name(phase.id)}.cif"
            CifWriter(phase.crystal.to_structure(), significant_figures=10).write_file(path)
            paths.append(path)
    return paths


def _write_extxyz(
    out: Path, phases: list[Phase], evaluations: dict[str, Evaluation], distances: dict[str, float]
) -> list[Path]:
    from ase.io import write

    frames = []
    for phase in phases:
        if phase.crystal is None:
            continue
        atoms = _atoms(phase.crystal, evaluations[phase.id])
        atoms.info |= {"id": phase.id, "origin": phase.origin, "e_above_hull": distances[phase.id]}
        frames.append(atoms)
    path = out / "phases.extxyz"
    write(path, frames, format="extxyz")
    return [path]


def _write_entries(
    out: Path, phases: list[Phase], evaluations: dict[str, Evaluation], distances: dict[str, float]
) -> list[Path]:
    from monty.serialization import dumpfn

    entries = []
    for phase in phases:
        if phase.crystal is None:
            continue
        entry = _entry(phase.id, phase.crystal, evaluations[phase.id])
        entry.data |= {"origin": phase.origin, "e_above_hull": distances[phase.id]}
        entries.append(entry)
    path = out / "entries.json"
    dumpfn(entries, path, indent=1)
    return [path]


def _atoms(crystal: Crystal, evaluation: Evaluation) -> Atoms:
    """Return the crystal for ASE with energy, forces, stress and energy scale."""
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import full_3x3_to_voigt_6_stress

    stress = evaluation.stress
    atoms = crystal.to_atoms()
    atoms.calc = SinglePointCalculator(
        atoms,
        energy=evaluation.energy,
        forces=evaluation.forces,
        stress=full_3x3_to_voigt_6_stress(stress) if stress is not None else None,
    )
    atoms.info["energy_scale"] = evaluation.energy_scale.id
    return atoms


def _entry(id: str, crystal: Crystal, evaluation: Evaluation) -> ComputedStructureEntry:
    """Return pymatgen's entry with the uncorrected energy and the list of corrections."""
    from pymatgen.entries.computed_entries import ComputedStructureEntry, ConstantEnergyAdjustment

    if evaluation.energy is None:
        raise ValueError(f"{id}: a failed evaluation has no energy")
    corrections = evaluation.corrections
    return ComputedStructureEntry(
        crystal.to_structure(),
        evaluation.energy - sum(corrections.values()),
        energy_adjustments=[ConstantEnergyAdjustment(value, name=name) for name, value in corrections.items()],
        parameters={"energy_scale": asdict(evaluation.energy_scale)},
        entry_id=id,
    )


CRYSTAL_FORMATS = ("cif", "poscar", "extxyz", "json")
"""Formats of :func:`crystal_file`."""


def crystal_file(format: str, id: str, crystal: Crystal, evaluation: Evaluation | None = None) -> tuple[str, str]:
    """Return name and text of a file with one crystal.

    Parameters
    ----------
    format
        ``cif`` or ``poscar``: the cell as it is (P1). ``extxyz``: for ASE, with energy, forces and stress if there is
        an evaluation. ``json``: pymatgen's ``ComputedStructureEntry``, or its ``Structure`` without an evaluation.
    id
        Of the candidate or reference phase.
    crystal
        What is written.
    evaluation
        The evaluation that relaxed it, not a failed one.
    """
    from ase.io import write
    from monty.json import MontyEncoder
    from pymatgen.io.cif import CifWriter
    from pymatgen.io.vasp import Poscar

    stem = f"{crystal.formula}_{file_name(id)}"
    match format:
        case "cif":
            return f"{stem}.cif", str(CifWriter(crystal.to_structure(), significant_figures=10))
        case "poscar":
            structure = crystal.to_structure().get_sorted_structure()
            return f"POSCAR_{stem}", Poscar(structure, comment=stem).get_str(significant_figures=12)
        case "extxyz":
            atoms = _atoms(crystal, evaluation) if evaluation is not None else crystal.to_atoms()
            atoms.info["id"] = id
            file = io.StringIO()
            write(file, atoms, format="extxyz")
            return f"{stem}.extxyz", file.getvalue()
        case "json":
            value: Any = _entry(id, crystal, evaluation) if evaluation is not None else crystal.to_structure()
            return f"{stem}.json", json.dumps(value.as_dict(), cls=MontyEncoder, indent=1)
    raise ValueError(f"{format!r} is none of {', '.join(CRYSTAL_FORMATS)}")
