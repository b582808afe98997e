"""Protocol P2: how many crystals of known composition are reconstructed, and how closely.

After Xie et al., ICLR 2022 (CDVAE), whose match rate and RMSE the field reports.
"""

from __future__ import annotations

import warnings

from pymatgen.analysis.structure_matcher import StructureMatcher

from discovery.crystal import Crystal

LENGTH_TOLERANCE = 0.3
SITE_TOLERANCE = 0.5
ANGLE_TOLERANCE = 10.0
"""Tolerances of the protocol: relative, in units of (volume/atom)^(1/3), and degrees."""

_MATCHER = StructureMatcher(ltol=LENGTH_TOLERANCE, stol=SITE_TOLERANCE, angle_tol=ANGLE_TOLERANCE)


def match_rms(predicted: Crystal | None, truth: Crystal) -> float | None:
    """Return the root mean square displacement of a matching prediction; None if it does not match.

    The displacement is that of the best mapping of sites after scaling to equal volume, in units of
    (volume/atom)^(1/3). A prediction that is missing or too degenerate to be compared does not match.
    """
    if predicted is None or predicted.formula != truth.formula:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            distances = _MATCHER.get_rms_dist(predicted.to_structure(), truth.to_structure())
        except (ValueError, ArithmeticError):  # singular lattices
            return None
    return None if distances is None else float(distances[0])
