"""Energy corrections of the Materials Project, applied once, from uncorrected energies.

MP2020 (Wang et al., Sci. Rep. 11, 15496, 2021) shifts compounds of PBE and PBE+U by fitted energies per anion and per
metal with a U; elements stay as they are. A hull of which only some entries are corrected is wrong by tenths of an eV.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING, Any

from pymatgen.core import Composition, Structure
from pymatgen.entries.computed_entries import ComputedEntry, ComputedStructureEntry

from discovery.crystal import Crystal
from discovery.errors import EnergyScaleError, InvalidInputError
from discovery.types import EnergyScale

if TYPE_CHECKING:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    from discovery.sets import CrystalSet, Member

MP2020 = "MP2020"
"""The scheme's name in :attr:`EnergyScale.corrections`."""


@cache
def _scheme() -> MaterialsProject2020Compatibility:
    from pymatgen.entries.compatibility import MaterialsProject2020Compatibility

    return MaterialsProject2020Compatibility(check_potcar=False)


def corrections_of_entry(
    composition: Composition, structure: Structure | None, parameters: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, float]:
    """Return the corrections that MP2020 asks of a calculation, name → eV per cell.

    Parameters
    ----------
    composition, structure
        Of the entry; the structure tells oxides from peroxides and superoxides.
    parameters
        ``run_type``, GGA or GGA+U, and ``hubbards``, as in pymatgen's entries.
    data
        ``oxidation_states`` and ``oxide_type``, if they are known.

    Raises
    ------
    InvalidInputError
        If the scheme does not hold for the calculation, such as for other values of U.
    """
    from pymatgen.entries.compatibility import CompatibilityError

    named: dict[str, Any] = {"parameters": dict(parameters), "data": dict(data)}
    with_structure = None if structure is None else ComputedStructureEntry(structure, 0.0, **named)
    entry = with_structure or ComputedEntry(composition, 0.0, **named)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            adjustments = _scheme().get_adjustments(entry)
    except CompatibilityError as error:
        raise InvalidInputError(f"MP2020 does not hold for it: {str(error).partition(' for {')[0]}") from error
    return {adjustment.name: float(adjustment.value) for adjustment in adjustments}


def corrections_of_crystal(crystal: Crystal, scale: EnergyScale) -> dict[str, float]:
    """Return the corrections that MP2020 asks of an oracle's energy of `crystal`, name → eV per cell.

    A functional PBE+U stands for PBE with the Materials Project's U where it sets one, as in the training data of most
    force fields.

    Raises
    ------
    InvalidInputError
        If the scheme does not hold: plain PBE where the Materials Project sets a U.
    """
    structure = crystal.to_structure()
    hubbards = _hubbards(structure.composition) if "+U" in scale.functional else {}
    return corrections_of_entry(structure.composition, structure, {"run_type": "GGA", "hubbards": hubbards}, {})


def _hubbards(composition: Composition) -> dict[str, float]:
    """Return element → U in eV as the Materials Project sets it."""
    anion = max(composition.elements, key=lambda element: element.X).symbol
    values = _scheme().u_settings.get(anion, {})
    return {element.symbol: float(values[element.symbol]) for element in composition if element.symbol in values}


def corrected_scale(scale: EnergyScale) -> EnergyScale:
    """Return the scale of an oracle's energies after MP2020; `scale` itself if they contain it.

    Raises
    ------
    EnergyScaleError
        If the energies contain other corrections, or are not of PBE.
    """
    if scale.corrections == MP2020:
        return scale
    if scale.corrections:
        raise EnergyScaleError(f"the energies of {scale} contain the corrections {scale.corrections}; leave MP2020 out")
    if not scale.functional.upper().startswith("PBE"):
        raise EnergyScaleError(f"MP2020 corrects PBE and PBE+U; the energies of {scale} are of {scale.functional}")
    return replace(scale, corrections=MP2020)


def check_corrections(sets: Iterable[CrystalSet], scale: EnergyScale | None = None) -> None:
    """Refuse sets whose total energies are corrected in part.

    Only entries say whether their energies contain corrections. An entry that names none counts as uncorrected if
    MP2020 would correct it.

    Parameters
    ----------
    sets
        Sets whose energies are to meet.
    scale
        That of an oracle whose energies are to meet them as well.

    Raises
    ------
    EnergyScaleError
        If corrected and uncorrected energies would meet.
    """
    sets = list(sets)
    members = [(one.path, member) for one in sets for member in one.members if member.energies.corrections is not None]
    corrected = next((f"{path}, {member.id}" for path, member in members if member.energies.corrections), None)
    if scale is not None and scale.corrections == MP2020:
        corrected = corrected or f"those of {scale}"
    bare = scale is not None and not scale.corrections and scale.functional.upper().startswith("PBE")
    if corrected is None:
        return
    uncorrected = f"those of {scale}" if bare else next((f"{p}, {m.id}" for p, m in members if _lacks(m)), None)
    if uncorrected is not None:
        raise EnergyScaleError(
            f"corrected energies ({corrected}) would meet uncorrected ones ({uncorrected}); give --corrections mp2020, "
            "which corrects all entries once from their uncorrected energies"
        )


def _lacks(member: Member) -> bool:
    """Whether a member's entry names no corrections though MP2020 would correct it."""
    if member.energies.corrections or member.energies.total is None or not member.composition:
        return False
    composition = Composition(member.composition)
    if len(composition) == 1 or not any(element.symbol in _scheme().comp_correction for element in composition):
        return False
    structure = member.crystal.to_structure() if member.crystal is not None else None
    parameters = {"run_type": "GGA", "hubbards": _hubbards(composition)}
    return any(corrections_of_entry(composition, structure, parameters, {}).values())


def listed_corrections(one: CrystalSet) -> dict[str, Mapping[str, float]]:
    """Return id → name → eV/atom of the corrections that a set's total energies contain."""
    return {member.id: member.energies.corrections for member in one.members if member.energies.corrections}
