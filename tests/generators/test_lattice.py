"""Lattice encodings against pymatgen."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pymatgen.core import Lattice

from generators import lattice as lattices

lengths = st.floats(2.0, 15.0)
angles = st.floats(55.0, 125.0)


@settings(max_examples=200, deadline=None)
@given(lengths, lengths, lengths, st.tuples(angles, angles, angles), st.integers(1, 24))
def test_round_trip_keeps_lengths_angles_and_volume(a, b, c, abg, n):
    cosines = np.cos(np.radians(abg))
    if 1 - (cosines**2).sum() + 2 * cosines.prod() < 0.02:
        return
    lattice = Lattice.from_parameters(a, b, c, *abg)
    n_atoms = torch.tensor([float(n)], dtype=torch.float64)
    encoding = lattices.encode(torch.from_numpy(lattice.matrix.copy())[None], n_atoms)
    decoded = Lattice(lattices.decode(encoding, n_atoms)[0].numpy())
    np.testing.assert_allclose(decoded.parameters, lattice.parameters, rtol=1e-8)
    np.testing.assert_allclose(float(encoding[0, :3].sum()), np.log(lattice.volume / n), atol=1e-9)


def test_encoding_does_not_change_under_rotation():
    rng = np.random.default_rng(0)
    matrix = np.eye(3) * 4 + rng.normal(size=(3, 3)) * 0.5
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    n_atoms = torch.tensor([3.0], dtype=torch.float64)
    a, b = (lattices.encode(torch.from_numpy(m)[None], n_atoms) for m in (matrix, matrix @ rotation))
    torch.testing.assert_close(a, b)


def test_any_encoding_is_a_lattice():
    encoding = torch.randn(500, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    decoded = lattices.decode(encoding, torch.full((500,), 4.0, dtype=torch.float64))
    assert torch.isfinite(decoded).all()
    torch.testing.assert_close(torch.linalg.det(decoded).log(), encoding[:, :3].sum(1) + np.log(4.0))
