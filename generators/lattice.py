"""Encodings of a lattice as six unconstrained numbers; torch only."""

from __future__ import annotations

import torch
from torch import Tensor

_ROWS = torch.tensor([0, 1, 2, 0, 0, 1])
_COLUMNS = torch.tensor([0, 1, 2, 1, 2, 2])


def metric(lattice: Tensor) -> Tensor:
    """Return the metric tensor G = L Lᵀ in Å², shape (…, 3, 3), of lattices with vectors as rows."""
    return lattice @ lattice.transpose(-1, -2)


def encode(lattice: Tensor, n_atoms: Tensor) -> Tensor:
    """Return the log-metric encoding of lattices, shape (…, 6).

    The upper triangle (11, 22, 33, 12, 13, 23) of S = ½ log G − ⅓ log(N) I, where G is the metric tensor in Å². S does
    not change under rotation, any S is a lattice, and tr S is the logarithm of the volume per atom.
    """
    eigenvalues, vectors = torch.linalg.eigh(metric(lattice))
    s = vectors @ torch.diag_embed(0.5 * eigenvalues.log()) @ vectors.transpose(-1, -2)
    s = s - n_atoms.log()[..., None, None] / 3 * torch.eye(3, dtype=lattice.dtype, device=lattice.device)
    return s[..., _ROWS, _COLUMNS]


def _symmetric(encoding: Tensor) -> Tensor:
    s = encoding.new_zeros(*encoding.shape[:-1], 3, 3)
    s[..., _ROWS, _COLUMNS] = encoding
    s[..., _COLUMNS, _ROWS] = encoding
    return s


def decode_metric(encoding: Tensor, n_atoms: Tensor) -> Tensor:
    """Return the metric tensor in Å², shape (…, 3, 3), of an encoding."""
    s = _symmetric(encoding)
    eigenvalues, vectors = torch.linalg.eigh(s)
    scale = torch.exp(2 * eigenvalues) * n_atoms[..., None] ** (2 / 3)
    return vectors @ torch.diag_embed(scale) @ vectors.transpose(-1, -2)


def decode(encoding: Tensor, n_atoms: Tensor) -> Tensor:
    """Return lattices with vectors as rows in Å, shape (…, 3, 3): the Cholesky factor of G, with a along x."""
    return torch.linalg.cholesky(decode_metric(encoding, n_atoms))
