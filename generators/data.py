"""Training sets as flat arrays; numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from discovery.types import LabelledCrystal


@dataclass(frozen=True)
class CrystalArrays:
    """Many crystals in a few arrays.

    Parameters
    ----------
    lattice
        Lattice vectors as rows, Å, float64, shape (M, 3, 3).
    n_atoms
        Atoms per crystal, int64, shape (M,).
    frac
        Fractional coordinates of all atoms, crystal after crystal, float64, shape (ΣN, 3).
    numbers
        Atomic numbers, int64, shape (ΣN,).
    properties
        One column per name in `property_names`, float64, shape (M, P); NaN where unknown.
    property_names
        Names of the columns.
    """

    lattice: np.ndarray
    n_atoms: np.ndarray
    frac: np.ndarray
    numbers: np.ndarray
    properties: np.ndarray
    property_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.n_atoms)

    @classmethod
    def from_crystals(cls, crystals: Sequence[LabelledCrystal], property_names: tuple[str, ...] = ()) -> CrystalArrays:
        """Gather labelled crystals."""
        return cls(
            lattice=np.array([item.crystal.lattice for item in crystals]).reshape(-1, 3, 3),
            n_atoms=np.array([len(item.crystal) for item in crystals], dtype=np.int64),
            frac=np.concatenate([np.zeros((0, 3)), *(item.crystal.frac_coords for item in crystals)]),
            numbers=np.concatenate([np.zeros(0, dtype=np.int64), *(item.crystal.atomic_numbers for item in crystals)]),
            properties=np.array(
                [[item.properties.get(name, np.nan) for name in property_names] for item in crystals]
            ).reshape(len(crystals), len(property_names)),
            property_names=property_names,
        )

    def take(self, indices: Sequence[int] | np.ndarray) -> CrystalArrays:
        """Return the crystals at `indices`, in that order."""
        indices = np.asarray(indices, dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(self.n_atoms)])
        atoms = np.concatenate([np.zeros(0, dtype=np.int64), *(np.arange(starts[i], starts[i + 1]) for i in indices)])
        return CrystalArrays(
            self.lattice[indices],
            self.n_atoms[indices],
            self.frac[atoms],
            self.numbers[atoms],
            self.properties[indices],
            self.property_names,
        )

    def concatenate(self, other: CrystalArrays) -> CrystalArrays:
        """Return these crystals followed by those of `other`, which must have the same properties."""
        if self.property_names != other.property_names:
            raise ValueError(f"properties differ: {self.property_names} and {other.property_names}")
        return CrystalArrays(
            np.concatenate([self.lattice, other.lattice]),
            np.concatenate([self.n_atoms, other.n_atoms]),
            np.concatenate([self.frac, other.frac]),
            np.concatenate([self.numbers, other.numbers]),
            np.concatenate([self.properties, other.properties]),
            self.property_names,
        )

    def padded(self) -> tuple[np.ndarray, np.ndarray]:
        """Return atomic numbers (M, N) and fractional coordinates (M, N, 3), padded with zeros."""
        size = int(self.n_atoms.max(initial=0))
        present = np.arange(size) < self.n_atoms[:, None]
        numbers = np.zeros((len(self), size), dtype=np.int64)
        frac = np.zeros((len(self), size, 3))
        numbers[present] = self.numbers
        frac[present] = self.frac
        return numbers, frac

    def save(self, path: Path) -> None:
        """Write one compressed ``.npz`` file."""
        np.savez_compressed(
            path,
            lattice=self.lattice,
            n_atoms=self.n_atoms,
            frac=self.frac,
            numbers=self.numbers,
            properties=self.properties,
            property_names=np.array(self.property_names, dtype=str),
        )

    @classmethod
    def load(cls, path: Path) -> CrystalArrays:
        """Read a file that :meth:`save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            return cls(
                data["lattice"],
                data["n_atoms"],
                data["frac"],
                data["numbers"],
                data["properties"],
                tuple(data["property_names"].tolist()),
            )


def shuffled_batches(
    data: CrystalArrays,
    batch_size: int,
    micro_batches: int,
    *,
    seed: int,
    start: int = 0,
    rank: int = 0,
    n_ranks: int = 1,
) -> Iterator[list[CrystalArrays]]:
    """Yield batches for ever, each as micro-batches of crystals of similar size, so that little is padded.

    The stream depends on `seed` alone; `start` skips that many batches, for resuming. Each of `n_ranks` processes gets
    crystals of its own.
    """
    per_step = batch_size * n_ranks
    per_epoch = max(1, len(data) // per_step)
    step = start
    while True:
        epoch, first = divmod(step, per_epoch)
        order = np.random.default_rng([seed, epoch]).permutation(len(data))
        if len(data) < per_step:
            order = np.resize(order, per_step)
        for position in range(first, per_epoch):
            begin = position * per_step + rank * batch_size
            chosen = order[begin : begin + batch_size]
            chosen = chosen[np.argsort(data.n_atoms[chosen], kind="stable")]
            yield [data.take(part) for part in np.array_split(chosen, micro_batches)]
            step += 1
