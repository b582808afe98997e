"""Fingerprints of crystals and compositions by which CDVAE measures coverage (Xie et al., ICLR 2022)."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from pymatgen.analysis.local_env import CrystalNN, LocalStructOrderParams
from pymatgen.core import Composition, Structure

from discovery.evaluation.tables import table
from discovery.matching import is_thin

N_COORDINATIONS = 24
"""Coordination numbers that the structure fingerprint distinguishes."""

MIN_VOLUME_PER_ATOM = 0.5
"""Å³; denser cells have no fingerprint, and thin ones have none, because the search for neighbours would take hours."""


def composition_fingerprint(composition: Composition) -> np.ndarray:
    """Return the standardised Magpie features, shape (132,).

    Minimum, maximum, range, mean, mean deviation and mode of 22 element properties (Ward et al., npj Comput. Mater. 2,
    16028, 2016), minus the means and over the standard deviations that CDVAE fixed; undefined values become 0.
    """
    known = table("magpie")["elements"]
    values = np.array([known[element.symbol] for element in composition.elements])
    weights = np.array([composition[element] for element in composition.elements])
    low, high = values.min(axis=0), values.max(axis=0)
    mean = np.average(values, axis=0, weights=weights)
    deviation = np.average(np.abs(values - mean), axis=0, weights=weights)
    mode = values[np.isclose(weights, weights.max())].min(axis=0)
    features = np.stack([low, high, high - low, mean, deviation, mode], axis=1).ravel()
    scaler = table("composition_scaler")
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.nan_to_num((features - scaler["means"]) / scaler["stds"], nan=0.0, posinf=0.0, neginf=0.0)


def structure_fingerprint(structure: Structure) -> np.ndarray | None:
    """Return the mean over sites of likelihoods and order parameters of coordinations, shape (61,); None without one.

    After Zimmermann and Jain (RSC Adv. 10, 6063, 2020); neighbours by pymatgen's ``CrystalNN``.
    """
    if not len(structure) or structure.volume / len(structure) < MIN_VOLUME_PER_ATOM or is_thin(structure.lattice):
        return None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return np.mean([_site_fingerprint(structure, site) for site in range(len(structure))], axis=0)
    except Exception:  # what CrystalNN cannot coordinate has no fingerprint, by the protocol
        return None


def _site_fingerprint(structure: Structure, site: int) -> list[float]:
    found = _neighbours().get_nn_data(structure, site)
    fingerprint = []
    for coordination in range(1, N_COORDINATIONS + 1):
        weight = found.cn_weights.get(coordination, 0)
        fingerprint.append(weight)
        for motif in _motifs().get(coordination, ()):
            value = 0.0
            if weight:
                sites: Any = [structure[site], *(neighbour["site"] for neighbour in found.cn_nninfo[coordination])]
                value = motif.get_order_parameters(sites, 0, indices_neighs=list(range(1, len(sites))))[0] or 0.0
            fingerprint.append(weight * value)
    return fingerprint


@cache
def _neighbours() -> CrystalNN:
    return CrystalNN()


@cache
def _motifs() -> dict[int, tuple[LocalStructOrderParams, ...]]:
    return {
        int(coordination): tuple(LocalStructOrderParams([kind], parameters=[parameters]) for kind, parameters in motifs)
        for coordination, motifs in table("coordination_motifs")["motifs"].items()
    }
