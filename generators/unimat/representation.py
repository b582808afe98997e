"""The periodic table as a 9 × 18 grid, UniMat's place for every element (arXiv 2311.09235, section 2.1)."""

from __future__ import annotations

import numpy as np

N_PERIODS = 9
N_GROUPS = 18
MAX_ATOMIC_NUMBER = 118


def _positions() -> np.ndarray:
    """Row and column of every element; rows 7 and 8 hold La/Ce–Lu and Ac/Th–Lr, left-aligned at group 3."""
    table = np.full((MAX_ATOMIC_NUMBER + 1, 2), -1, dtype=np.int64)
    noble = [2, 10, 18, 36, 54, 86, 118]
    first = [1, 3, 11, 19, 37, 55, 87]
    for row, (start, end) in enumerate(zip(first, noble, strict=True)):
        z = start
        for z in range(start, min(start + 2, end)):
            table[z] = (row, z - start)
        if row == 0:
            table[end] = (0, N_GROUPS - 1)
            continue
        rest = list(range(z + 1, end + 1))
        if row >= 5:
            strip, rest = rest[:15], rest[15:]
            for column, element in enumerate(strip):
                table[element] = (row + 2, 2 + column)
        for column, element in enumerate(reversed(rest)):
            table[element] = (row, N_GROUPS - 1 - column)
    return table


TABLE_POSITIONS = _positions()
"""int64, shape (119, 2): row (period) and column (group), counted from 0, of atomic number Z; row 0 is unused."""
