"""Crystals to train a generator on, from files and from campaigns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np

from discovery.errors import InvalidInputError
from discovery.references import read_csv
from discovery.runfolder import RunFolder
from discovery.sets import read_set
from discovery.types import LabelledCrystal, Stability, State

Item = TypeVar("Item")


def read_training_data(path: Path) -> list[LabelledCrystal]:
    """Return the crystals of a file or of a campaign, with their properties; what cannot be used is left out.

    Parameters
    ----------
    path
        CSV file in the format of the CDVAE benchmark files; another file or folder that
        :func:`discovery.sets.read_set` reads, such as a JSON list of pymatgen entries; or the run folder of a campaign,
        of which the stable and metastable crystals are taken as the reference oracle relaxed them.

    Raises
    ------
    InvalidInputError
        If there is no crystal.
    """
    if path.is_dir() and RunFolder(path).holds_campaign:
        crystals = _of_campaign(path)
    elif {".csv"} & set(path.suffixes):
        crystals = [LabelledCrystal(known.crystal, known.properties, known.id) for known in read_csv(path).crystals]
    else:
        crystals = [
            LabelledCrystal(
                member.crystal,
                {
                    name: value
                    for name, value in (
                        ("formation_energy_per_atom", member.energies.formation),
                        ("e_above_hull", member.energies.above_hull),
                    )
                    if value is not None
                },
                member.id,
            )
            for member in read_set(path).members
            if member.crystal is not None
        ]
    if not crystals:
        raise InvalidInputError(f"{path} holds no crystal to train on")
    return crystals


def _of_campaign(run: Path) -> list[LabelledCrystal]:
    store = RunFolder(run).read_store()
    try:
        candidates = store.candidates({State.JUDGED, State.LEARNED})
    finally:
        store.close()
    return [
        LabelledCrystal(
            candidate.reference.crystal,
            {
                "formation_energy_per_atom": candidate.verdict.formation_energy_per_atom,
                "e_above_hull": candidate.verdict.e_above_hull,
            },
            candidate.id,
        )
        for candidate in candidates
        if candidate.verdict is not None
        and candidate.verdict.stability is not Stability.UNSTABLE
        and candidate.reference is not None
        and candidate.reference.crystal is not None
    ]


def without_system(crystals: Sequence[LabelledCrystal], elements: Sequence[str]) -> list[LabelledCrystal]:
    """Leave out the crystals that are made of `elements` alone, so that a search of them finds nothing it has seen."""
    space = set(elements)
    return [item for item in crystals if not set(item.crystal.chemsys.split("-")) <= space]


def split(crystals: Sequence[Item], fraction: float, seed: int) -> tuple[list[Item], list[Item]]:
    """Return training crystals, and a random `fraction` of them, at least one, for validation.

    Raises
    ------
    InvalidInputError
        If there are fewer than two.
    """
    if len(crystals) < 2:
        raise InvalidInputError(f"{len(crystals)} crystals cannot be split for training and validation; add data")
    order = np.random.default_rng(seed).permutation(len(crystals))
    n_validation = min(max(1, round(fraction * len(crystals))), len(crystals) - 1)
    return [crystals[i] for i in order[n_validation:]], [crystals[i] for i in order[:n_validation]]
