"""CHGNet on many crystals in one pass: energies, forces and stresses.

The model is that of the ``chgnet`` package, weights and all; what is new is how it is computed. The package builds its
graph in Python objects and differentiates once for the forces and once for the stress, each time ready to be
differentiated again. Here the graph is made of whole arrays, one derivative gives both, and each layer's first linear
map, which the package applies to the concatenated features of every angle or directed bond, is applied to atoms, bonds
and angles before they are gathered. Energies agree to rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from discovery.crystal import Crystal
from discovery.types import Failure, FailureKind
from oracles.neighbors import Bonds, bonds
from oracles.relax import Answer, split_answers


@dataclass(frozen=True)
class _Graph:
    """Several crystals as one graph; bonds within the cutoff of angles come first."""

    numbers: Tensor
    """Atomic numbers, shape (N,)."""
    frac_coords: Tensor
    atom_owner: Tensor
    """Which crystal an atom belongs to, shape (N,)."""
    lattices: Tensor
    """Shape (B, 3, 3), Å."""
    first: Tensor
    """First atom of each bond, shape (M,)."""
    second: Tensor
    image: Tensor
    bond_owner: Tensor
    n_short: int
    """How many bonds take part in angles."""
    center: Tensor
    """Atom that a directed bond sends its message to, shape (2M,): each bond in both directions."""
    neighbor: Tensor
    directed_bond: Tensor
    angle_center: Tensor
    """Atom at the tip of each angle, shape (A,)."""
    angle_first: Tensor
    """Bond that is updated by the angle."""
    angle_second: Tensor
    angle_sign: Tensor
    """1 if both bonds point from or to the tip, −1 if one points each way."""


def _graph(crystals: Sequence[Crystal], found: Sequence[Bonds], angle_cutoff: float) -> _Graph:
    """Join crystals and their bonds."""
    sizes = np.array([len(crystal) for crystal in crystals])
    offsets = np.cumsum(sizes) - sizes
    length = np.concatenate([bond.length for bond in found])
    is_short = length < angle_cutoff
    order = np.argsort(~is_short, kind="stable")
    n, n_short = len(length), int(is_short.sum())

    first = np.concatenate([bond.first + offset for bond, offset in zip(found, offsets, strict=True)])[order]
    second = np.concatenate([bond.second + offset for bond, offset in zip(found, offsets, strict=True)])[order]
    owner = np.repeat(np.arange(len(crystals)), [len(bond.length) for bond in found])[order]
    center, neighbor = np.concatenate([first, second]), np.concatenate([second, first])
    directed_bond = np.tile(np.arange(n), 2)
    short = np.concatenate([np.arange(n_short), n + np.arange(n_short)])
    one, other = (short[index] for index in _pairs(center[short]))
    return _Graph(
        numbers=torch.from_numpy(np.concatenate([crystal.atomic_numbers for crystal in crystals])),
        frac_coords=_float(np.concatenate([crystal.frac_coords for crystal in crystals])),
        atom_owner=torch.from_numpy(np.repeat(np.arange(len(crystals)), sizes)),
        lattices=_float(np.stack([crystal.lattice for crystal in crystals])),
        first=torch.from_numpy(first),
        second=torch.from_numpy(second),
        image=_float(np.concatenate([bond.image for bond in found])[order]),
        bond_owner=torch.from_numpy(owner),
        n_short=n_short,
        center=torch.from_numpy(center),
        neighbor=torch.from_numpy(neighbor),
        directed_bond=torch.from_numpy(directed_bond),
        angle_center=torch.from_numpy(center[one]),
        angle_first=torch.from_numpy(directed_bond[one]),
        angle_second=torch.from_numpy(directed_bond[other]),
        angle_sign=_float(np.where((one < n) == (other < n), 1.0, -1.0)),
    )


def _float(array: np.ndarray) -> Tensor:
    return torch.from_numpy(array).to(torch.get_default_dtype())


def _pairs(groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the indices of all ordered pairs of different members of the same group."""
    order = np.argsort(groups, kind="stable")
    _, sizes = np.unique(groups, return_counts=True)
    partners = np.repeat(sizes, sizes)
    one = np.repeat(np.arange(len(groups)), partners)
    start = np.repeat(np.repeat(np.cumsum(sizes) - sizes, sizes), partners)
    other = np.arange(len(one)) - np.repeat(np.cumsum(partners) - partners, partners) + start
    different = one != other
    return order[one[different]], order[other[different]]


class _Gated:
    """CHGNet's gated perceptron of concatenated features, whose first linear map acts before they are gathered."""

    def __init__(self, layer: Any) -> None:
        core, gate = (
            [part for part in mlp.layers if isinstance(part, nn.Linear)] for mlp in (layer.mlp_core, layer.mlp_gate)
        )
        self._first = (core[0], gate[0])
        self._second = (core[1], gate[1]) if len(core) > 1 else None
        self._norms = (layer.bn1, layer.bn2)

    def __call__(self, *terms: tuple[Tensor, Tensor | None]) -> Tensor:
        """Return the output for features that are given with the index that gathers them (None: they are)."""
        weight = torch.cat([linear.weight for linear in self._first])
        bias = torch.cat([linear.bias for linear in self._first])
        weights = weight.split([features.shape[1] for features, _ in terms], dim=1)
        mapped = [
            functional.linear(features, weight) if index is None else functional.linear(features, weight)[index]
            for (features, index), weight in zip(terms, weights, strict=True)
        ]
        total = sum(mapped[1:], mapped[0] + bias)
        if self._second is not None:
            total = functional.silu(total)
        core, gate = total.chunk(2, dim=1)
        if self._second is not None:
            core, gate = self._second[0](core), self._second[1](gate)
        return functional.silu(self._norms[0](core)) * torch.sigmoid(self._norms[1](gate))


class CHGNetForceField:
    """CHGNet as a :class:`~oracles.relax.ForceField`.

    Parameters
    ----------
    model
        ``chgnet.model.CHGNet`` with the architecture of the published checkpoints.
    """

    def __init__(self, model: Any) -> None:
        if not model.mlp_first or model.composition_model is None or not model.is_intensive:
            raise ValueError("only CHGNet models with the architecture of the published checkpoints can be computed")
        self._model = model.requires_grad_(False).eval()
        self._cutoff = model.graph_converter.atom_graph_cutoff
        self._angle_cutoff = model.graph_converter.bond_graph_cutoff
        self._atom_layers = [_Gated(layer.twoBody_atom) for layer in model.atom_conv_layers]
        self._bond_layers = [_Gated(layer.twoBody_bond) for layer in model.bond_conv_layers]
        self._angle_layers = [_Gated(layer.twoBody_bond) for layer in model.angle_layers]

    @property
    def module(self) -> nn.Module:
        """The model."""
        module: nn.Module = self._model
        return module

    @property
    def trainable(self) -> list[nn.Parameter]:
        """All weights but the energies of the elements."""
        fixed = set(self._model.composition_model.parameters())
        return [parameter for parameter in self._model.parameters() if parameter not in fixed]

    def shift(self, energies: Mapping[int, float]) -> None:
        """Add an energy (eV) per atom of each element, given by atomic number."""
        for number, energy in energies.items():
            self._model.composition_model.fc.weight.data[0, number - 1] += energy

    def compute(self, crystals: Sequence[Crystal]) -> list[Answer | Failure]:
        """Return energy, forces and stress of each crystal; an atom without neighbours is a failure."""
        found = [bonds(crystal, self._cutoff) for crystal in crystals]
        good = [
            len(np.unique(np.concatenate([bond.first, bond.second]))) == len(crystal)
            for crystal, bond in zip(crystals, found, strict=True)
        ]
        message = f"an atom has no neighbour that the model can see, within {self._cutoff:g} Å"
        answers = iter(
            self._compute(
                [crystal for crystal, ok in zip(crystals, good, strict=True) if ok],
                [bond for bond, ok in zip(found, good, strict=True) if ok],
            )
        )
        return [next(answers) if ok else Failure(FailureKind.UNPHYSICAL, message) for ok in good]

    def _compute(self, crystals: Sequence[Crystal], found: Sequence[Bonds]) -> list[Answer]:
        if not crystals:
            return []
        return split_answers(crystals, *self._predict(crystals, found))

    def predict(self, crystals: Sequence[Crystal]) -> tuple[Tensor, Tensor, Tensor]:
        """Return energies (eV, (B,)), forces (eV/Å, (N, 3)) and stresses (eV/Å³, (B, 3, 3)) of crystals.

        In training mode they can be differentiated by the model's parameters.
        """
        return self._predict(crystals, [bonds(crystal, self._cutoff) for crystal in crystals])

    def _predict(self, crystals: Sequence[Crystal], found: Sequence[Bonds]) -> tuple[Tensor, Tensor, Tensor]:
        graph = _graph(crystals, found, self._angle_cutoff)
        displacement = torch.zeros_like(graph.frac_coords, requires_grad=True)
        strain = torch.zeros_like(graph.lattices, requires_grad=True)
        energies = self._energies(graph, displacement, strain)
        gradient, virial = torch.autograd.grad(
            energies.sum(), [displacement, strain], create_graph=self._model.training
        )
        volumes = graph.lattices.det().abs()[:, None, None]
        return energies, -gradient, (virial + virial.mT) / (2 * volumes)

    def _energies(self, graph: _Graph, displacement: Tensor, strain: Tensor) -> Tensor:
        """Return the energy of each crystal, eV, shape (B,)."""
        model = self._model
        lattices = graph.lattices + graph.lattices @ strain
        positions = _rows(graph.frac_coords, lattices, graph.atom_owner) + displacement
        vectors = positions[graph.first] - positions[graph.second] - _rows(graph.image, lattices, graph.bond_owner)
        lengths = vectors.norm(dim=1)
        n_short = graph.n_short

        radial = model.bond_basis_expansion.rbf_expansion_ag(lengths)
        atoms = model.atom_embedding(graph.numbers - 1)
        bonds = model.bond_embedding(radial)
        bond_weights = model.bond_weights_ag(radial).index_select(0, graph.directed_bond)
        if n_short:
            weights = model.bond_weights_bg(model.bond_basis_expansion.rbf_expansion_bg(lengths[:n_short]))
            weights = weights.index_select(0, graph.angle_first) * weights.index_select(0, graph.angle_second)
            units = vectors[:n_short] / lengths[:n_short, None]
            cosine = (units[graph.angle_first] * units[graph.angle_second]).sum(dim=1) * graph.angle_sign
            expansion = model.angle_basis_expansion.fourier_expansion(torch.acos(cosine * (1 - 1e-6)))
            angles = model.angle_embedding(expansion)

        for index, atom_layer in enumerate(model.atom_conv_layers):
            messages = self._atom_layers[index](
                (atoms, graph.center), (bonds, graph.directed_bond), (atoms, graph.neighbor)
            )
            sums = torch.zeros_like(atoms).index_add(0, graph.center, messages * bond_weights)
            atoms = atoms + atom_layer.mlp_out(sums)
            if not n_short or index == len(self._bond_layers):
                continue
            short = bonds[:n_short]
            gathered = ((angles, None), (atoms, graph.angle_center))
            ends = ((short, graph.angle_first), (short, graph.angle_second))
            messages = self._bond_layers[index](*ends, *gathered)
            sums = torch.zeros_like(short).index_add(0, graph.angle_first, messages * weights)
            short = short + model.bond_conv_layers[index].mlp_out(sums)
            bonds = torch.cat([short, bonds[n_short:]])
            if index + 1 < len(self._bond_layers):
                ends = ((short, graph.angle_first), (short, graph.angle_second))
                angles = angles + self._angle_layers[index](*ends, *gathered)
        if model.readout_norm is not None:
            atoms = model.readout_norm(atoms)
        sites = model.mlp(atoms)[:, 0] + model.composition_model.fc.weight[0, graph.numbers - 1]
        return torch.zeros_like(graph.lattices[:, 0, 0]).index_add(0, graph.atom_owner, sites)


def _rows(vectors: Tensor, matrices: Tensor, owner: Tensor) -> Tensor:
    """Return each vector times the matrix of its owner."""
    return torch.bmm(vectors[:, None], matrices[owner])[:, 0]
