"""Writes a campaign's phases in formats that other programs read."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Literal

from discovery.errors import RunError
from discovery.hull import Phase
from discovery.runfolder import RunFolder, file_name
from discovery.status import discovered_phases
from discovery.types import Evaluation

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
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write
    from ase.stress import full_3x3_to_voigt_6_stress

    frames = []
    for phase in phases:
        if phase.crystal is None:
            continue
        evaluation = evaluations[phase.id]
        stress = evaluation.stress
        atoms = phase.crystal.to_atoms()
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=phase.energy,
            forces=evaluation.forces,
            stress=full_3x3_to_voigt_6_stress(stress) if stress is not None else None,
        )
        atoms.info |= {
            "id": phase.id,
            "origin": phase.origin,
            "energy_scale": phase.energy_scale.id,
            "e_above_hull": distances[phase.id],
        }
        frames.append(atoms)
    path = out / "phases.extxyz"
    write(path, frames, format="extxyz")
    return [path]


def _write_entries(
    out: Path, phases: list[Phase], evaluations: dict[str, Evaluation], distances: dict[str, float]
) -> list[Path]:
    from monty.serialization import dumpfn
    from pymatgen.entries.computed_entries import ComputedStructureEntry, ConstantEnergyAdjustment

    entries = []
    for phase in phases:
        if phase.crystal is None:
            continue
        corrections = evaluations[phase.id].corrections
        entries.append(
            ComputedStructureEntry(
                phase.crystal.to_structure(),
                phase.energy - sum(corrections.values()),
                energy_adjustments=[ConstantEnergyAdjustment(value, name=name) for name, value in corrections.items()],
                parameters={"energy_scale": asdict(phase.energy_scale)},
                data={"origin": phase.origin, "e_above_hull": distances[phase.id]},
                entry_id=phase.id,
            )
        )
    path = out / "entries.json"
    dumpfn(entries, path, indent=1)
    return [path]
