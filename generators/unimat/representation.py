"""UniMat's dense representation: crystals as tensors over a 9 × 18 periodic table (arXiv 2311.09235, section 2.1).

Torch and numpy only.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from discovery.errors import InvalidInputError
from generators.data import CrystalArrays

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

TABLE_SHA256 = hashlib.sha256(json.dumps(TABLE_POSITIONS.tolist()).encode()).hexdigest()
"""Hash of the map from elements to the table; stored in checkpoints, whose weights depend on it."""

NULL_LOCATION = -1.0
"""Coordinate of a slot without an atom (section 2.1)."""


@dataclass(frozen=True)
class DenseLayout:
    """How crystals are laid out as tensors of shape (L, H, W, C).

    Coordinates are first brought to [0, 1]: fractional ones are there, Cartesian ones are taken from the cell's centre
    and divided by twice the `radius`. With `absence` ``null_location`` they stand as they are and empty slots hold −1
    (the paper's form, C = 3). With ``occupancy`` they are scaled to [−1, 1], empty slots hold 0, and a fourth channel
    is +1 at atoms and −1 elsewhere (C = 4).

    Parameters
    ----------
    slots
        L, the largest number of atoms of one element in a cell.
    periods, groups
        Rows and columns of the sub-table, counted from 1; rows 8 and 9 are the lanthanides and actinides, left-aligned
        at group 3.
    coordinates
        ``fractional``, or ``cartesian``, which can be rotated.
    absence
        How an empty slot is told from an atom.
    radius
        Largest distance of a cell's corner from its centre, Å; for Cartesian coordinates.
    """

    slots: int = 20
    periods: tuple[int, ...] = tuple(range(1, N_PERIODS + 1))
    groups: tuple[int, ...] = tuple(range(1, N_GROUPS + 1))
    coordinates: Literal["fractional", "cartesian"] = "fractional"
    absence: Literal["occupancy", "null_location"] = "occupancy"
    radius: float = 25.0

    __pydantic_config__: ClassVar[dict[str, Any]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        if self.slots < 1 or self.radius <= 0:
            raise InvalidInputError(f"slots ({self.slots}) and radius ({self.radius}) must be positive")
        for name, values, largest in (("periods", self.periods, N_PERIODS), ("groups", self.groups, N_GROUPS)):
            if not values or sorted(set(values)) != list(values) or values[0] < 1 or values[-1] > largest:
                raise InvalidInputError(f"{name} must be increasing numbers from 1 to {largest}, not {values}")
        if not self.atomic_numbers.any():
            raise InvalidInputError(f"no element stands in periods {self.periods} and groups {self.groups}")

    @property
    def channels(self) -> int:
        """C."""
        return 4 if self.absence == "occupancy" else 3

    @property
    def shape(self) -> tuple[int, int, int]:
        """L, H, W."""
        return self.slots, len(self.periods), len(self.groups)

    @cached_property
    def positions(self) -> np.ndarray:
        """int64, shape (119, 2): row and column in the sub-table of atomic number Z, −1 for those outside."""
        rows = np.full(N_PERIODS + 1, -1)
        columns = np.full(N_GROUPS + 1, -1)
        rows[np.array(self.periods) - 1] = np.arange(len(self.periods))
        columns[np.array(self.groups) - 1] = np.arange(len(self.groups))
        inside = np.stack([rows[TABLE_POSITIONS[:, 0]], columns[TABLE_POSITIONS[:, 1]]], axis=1)
        inside[(inside < 0).any(axis=1)] = -1
        inside[0] = -1
        return inside

    @cached_property
    def atomic_numbers(self) -> np.ndarray:
        """int64, shape (H, W): the element at each place, 0 where there is none."""
        table = np.zeros(self.shape[1:], dtype=np.int64)
        numbers = np.flatnonzero(self.positions[:, 0] >= 0)
        table[tuple(self.positions[numbers].T)] = numbers
        return table

    def misfit(self, numbers: np.ndarray) -> str | None:
        """Return why a cell of the given atomic numbers, shape (N,), does not fit, or None if it does."""
        for number, count in Counter(numbers.tolist()).items():
            if self.positions[number, 0] < 0:
                return f"the element of atomic number {number} is outside periods {self.periods}, groups {self.groups}"
            if count > self.slots:
                return f"it has {count} atoms of atomic number {number}, more than the {self.slots} slots"
        return None


def smallest_layout(data: CrystalArrays, **options: Any) -> DenseLayout:
    """Return the layout with the fewest slots, rows and columns that `data` fits into.

    `options` are further fields of :class:`DenseLayout`.
    """
    numbers, _ = data.padded()
    present = np.unique(numbers[numbers > 0])
    rows, columns = (np.unique(TABLE_POSITIONS[present, axis]) + 1 for axis in (0, 1))
    slots = max((numbers == z).sum(axis=1).max() for z in present)
    sizes = {"slots": int(slots), "periods": tuple(rows.tolist()), "groups": tuple(columns.tolist())}
    return DenseLayout(**{**sizes, **options})


def cell_radius(lattice: Tensor) -> Tensor:
    """Return the largest distance of a corner from the cell's centre, Å, of lattices of shape (…, 3, 3)."""
    signs = torch.tensor([[1, 1, 1], [1, 1, -1], [1, -1, 1], [-1, 1, 1]], dtype=lattice.dtype, device=lattice.device)
    return (0.5 * signs @ lattice).norm(dim=-1).amax(-1)


def check_fit(data: CrystalArrays, layout: DenseLayout) -> None:
    """Raise if a crystal does not fit.

    Raises
    ------
    InvalidInputError
        Naming the crystal, the reason and the setting to change.
    """
    numbers, _ = data.padded()
    radii = cell_radius(torch.from_numpy(data.lattice)).numpy()
    for index, (row, count) in enumerate(zip(numbers, data.n_atoms, strict=True)):
        reason = layout.misfit(row[:count])
        if reason is not None:
            raise InvalidInputError(
                f"crystal {index} does not fit the layout: {reason}; widen the layout or leave it out"
            )
        if layout.coordinates == "cartesian" and radii[index] > layout.radius:
            raise InvalidInputError(
                f"crystal {index} does not fit the layout: its cell reaches {radii[index]:.1f} Å from the centre, "
                f"beyond radius = {layout.radius:g} Å; raise radius or leave it out"
            )


def first_slots(numbers: Tensor) -> Tensor:
    """Return each atom's slot, shape (B, N), when the atoms of an element take slots 0, 1, … in their order."""
    same = numbers[:, :, None] == numbers[:, None, :]
    return same.tril(-1).sum(-1)


def shuffled_slots(numbers: Tensor, layout: DenseLayout, generator: torch.Generator) -> Tensor:
    """Return a random slot for each atom, shape (B, N), different for the atoms of an element."""
    keys = torch.rand(len(numbers), MAX_ATOMIC_NUMBER + 1, layout.slots, generator=generator)
    order = keys.argsort(-1).to(numbers.device)
    ranks = first_slots(numbers).clamp(max=layout.slots - 1)  # padding alone has more
    return order[torch.arange(len(numbers), device=numbers.device)[:, None], numbers, ranks]


def random_rotations(n: int, generator: torch.Generator) -> Tensor:
    """Return `n` rotation matrices, uniformly distributed, float32, shape (n, 3, 3)."""
    q, r = torch.linalg.qr(torch.randn(n, 3, 3, generator=generator))
    q = q * r.diagonal(dim1=-2, dim2=-1).sign()[:, None]
    return q * torch.linalg.det(q)[:, None, None]


def _to_unit(frac: Tensor, lattice: Tensor, layout: DenseLayout) -> Tensor:
    if layout.coordinates == "fractional":
        return frac
    return 0.5 + (frac - 0.5) @ lattice / (2 * layout.radius)


def _from_unit(unit: Tensor, lattice: Tensor, layout: DenseLayout) -> Tensor:
    if layout.coordinates == "fractional":
        return unit
    return 0.5 + (unit - 0.5) * (2 * layout.radius) @ torch.linalg.inv(lattice)


def _places(numbers: Tensor, slots: Tensor, layout: DenseLayout) -> tuple[Tensor, ...]:
    """Return crystal, slot, row, column and place in the padded row of every atom."""
    crystal, atom = (numbers > 0).nonzero(as_tuple=True)
    positions = torch.from_numpy(layout.positions).to(numbers.device)
    rows, columns = positions[numbers[crystal, atom]].unbind(-1)
    return crystal, slots[crystal, atom], rows, columns, atom


def occupied_slots(numbers: Tensor, slots: Tensor, layout: DenseLayout) -> Tensor:
    """Return a bool tensor (B, L, H, W), true where there is an atom."""
    occupied = torch.zeros(len(numbers), *layout.shape, dtype=torch.bool, device=numbers.device)
    occupied[_places(numbers, slots, layout)[:4]] = True
    return occupied


def encode(numbers: Tensor, frac: Tensor, lattice: Tensor, slots: Tensor, layout: DenseLayout) -> Tensor:
    """Return crystals that fit as a tensor (B, L, H, W, C).

    Parameters
    ----------
    numbers
        Atomic numbers, int64, shape (B, N); 0 marks padding.
    frac
        Fractional coordinates in [0, 1), shape (B, N, 3).
    lattice
        Lattice vectors as rows, Å, shape (B, 3, 3).
    slots
        Slot of each atom, shape (B, N).
    layout
        How to lay them out.
    """
    unit = _to_unit(frac, lattice, layout)
    *place, atom = _places(numbers, slots, layout)
    index = tuple(place)
    if layout.absence == "null_location":
        dense = frac.new_full((len(numbers), *layout.shape, 3), NULL_LOCATION)
        dense[index] = unit[place[0], atom]
        return dense
    dense = frac.new_zeros((len(numbers), *layout.shape, 4))
    dense[..., 3] = -1.0
    dense[index] = torch.nn.functional.pad(2 * unit[place[0], atom] - 1, (0, 1), value=1.0)
    return dense


def unit_coordinates(dense: Tensor, layout: DenseLayout) -> Tensor:
    """Return coordinates in [0, 1], shape (B, L, H, W, 3)."""
    return dense if layout.absence == "null_location" else (dense[..., :3] + 1) / 2


def presence(dense: Tensor, layout: DenseLayout) -> Tensor:
    """Return a bool tensor (B, L, H, W), true at atoms: occupied, or nearer to the box than to the null location."""
    if layout.absence == "null_location":
        return dense.mean(-1) > NULL_LOCATION / 2
    return dense[..., 3] > 0


def decode_atoms(dense: Tensor, lattice: Tensor, slots: Tensor, numbers: Tensor, layout: DenseLayout) -> Tensor:
    """Return the fractional coordinates (B, N, 3) of given atoms in given slots, padded with zeros."""
    frac = dense.new_zeros(*numbers.shape, 3)
    *place, atom = _places(numbers, slots, layout)
    unit = dense.new_zeros(*numbers.shape, 3)
    unit[place[0], atom] = unit_coordinates(dense, layout)[tuple(place)]
    present = numbers > 0
    frac[present] = _from_unit(unit, lattice, layout)[present]
    return frac % 1.0


def decode(dense: Tensor, lattice: Tensor, layout: DenseLayout) -> CrystalArrays:
    """Return the crystals that a tensor (B, L, H, W, C) and lattices (B, 3, 3) mean; atoms in the table's order."""
    table = torch.from_numpy(layout.atomic_numbers).to(dense.device)
    present = (presence(dense, layout) & (table > 0)).permute(0, 2, 3, 1)
    crystal, row, column, slot = present.nonzero(as_tuple=True)
    unit = unit_coordinates(dense, layout)[crystal, slot, row, column]
    frac = _from_unit(unit[:, None], lattice[crystal], layout)[:, 0] % 1.0
    return CrystalArrays(
        lattice.double().cpu().numpy(),
        present.flatten(1).sum(1).cpu().numpy(),
        frac.double().cpu().numpy(),
        table[row, column].cpu().numpy(),
        np.zeros((len(dense), 0)),
    )


def from_arrays(data: CrystalArrays, layout: DenseLayout) -> Tensor:
    """Return crystals as a float64 tensor (B, L, H, W, C), each element's atoms in the first slots.

    Raises
    ------
    InvalidInputError
        If a crystal does not fit.
    """
    check_fit(data, layout)
    numbers, frac = (torch.from_numpy(array) for array in data.padded())
    return encode(numbers, frac, torch.from_numpy(data.lattice), first_slots(numbers), layout)
