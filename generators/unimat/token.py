"""The token network: UniMat restricted to its occupied slots, for known compositions; torch only."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from generators.conditions import PropertyEmbedding
from generators.diffusion import wrap
from generators.unimat.representation import N_GROUPS, N_PERIODS, TABLE_POSITIONS


class TokenOutput(NamedTuple):
    """What the network predicts: noise of coordinates (B, N, 3) and lattice output (B, 6)."""

    frac: Tensor
    lattice: Tensor


class TokenBatch(NamedTuple):
    """Padded crystals.

    Parameters
    ----------
    numbers
        Atomic numbers, int64, shape (B, N); 0 marks padding.
    frac
        Fractional coordinates, shape (B, N, 3).
    lattice
        Standardised lattice encoding, shape (B, 6).
    properties
        Standardised auxiliary properties, shape (B, P); NaN where unknown or dropped.
    """

    numbers: Tensor
    frac: Tensor
    lattice: Tensor
    properties: Tensor

    @property
    def mask(self) -> Tensor:
        """Bool, shape (B, N): True at atoms."""
        return self.numbers > 0

    @property
    def n_atoms(self) -> Tensor:
        """Number of atoms, shape (B,)."""
        return self.mask.sum(1)

    def to(self, device: torch.device) -> TokenBatch:
        """Return the batch on `device`."""
        return TokenBatch(*(tensor.to(device) for tensor in self))


def sinusoidal(x: Tensor, dim: int, max_period: float = 1000.0) -> Tensor:
    """Return the sinusoidal embedding of `x`, shape (…, dim)."""
    frequencies = torch.exp(-math.log(max_period) * torch.arange(dim // 2, device=x.device) / (dim // 2))
    angles = x[..., None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


class TokenLayer(nn.Module):
    """Messages between all pairs of atoms, then an MLP per token; both modulated by the noise level (AdaLN).

    A message is SiLU(A hᵢ + B hⱼ + C eᵢⱼ) ⊙ D eᵢⱼ, with both products of the pair features eᵢⱼ modulated too; the
    second matrix of this gated edge MLP is applied after the sum over j.
    """

    def __init__(self, width: int, pair_width: int) -> None:
        super().__init__()
        self.norm_pair = nn.LayerNorm(width, elementwise_affine=False)
        self.norm_mlp = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = nn.Linear(width, 6 * width + 2 * pair_width)
        self.receiver = nn.Linear(width, pair_width)
        self.sender = nn.Linear(width, pair_width, bias=False)
        self.pair = nn.Linear(pair_width, 2 * pair_width, bias=False)
        self.sizes = [width] * 6 + [2 * pair_width]
        self.aggregate = nn.Linear(pair_width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, pairs: Tensor, weights: Tensor, condition: Tensor) -> Tensor:
        """Return updated tokens; `h` (B, N, width), `pairs` (B, N, N, pair_width), `weights` (B, 1, N, 1)."""
        modulation = self.modulation(condition)[:, None].split(self.sizes, dim=-1)
        shift1, scale1, gate1, shift2, scale2, gate2, pair_scale = modulation
        x = self.norm_pair(h) * (1 + scale1) + shift1
        gates, values = (self.pair(pairs) * (1 + pair_scale[:, None])).chunk(2, dim=-1)
        messages = F.silu(self.receiver(x)[:, :, None] + self.sender(x)[:, None] + gates) * values
        aggregated = torch.matmul(weights, messages).squeeze(-2)
        h = h + (1 + gate1) * self.aggregate(aggregated)
        x = self.norm_mlp(h) * (1 + scale2) + shift2
        return h + (1 + gate2) * self.mlp(x)


HARMONICS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
"""Multiples of 2π at which fractional displacements enter the pair features."""


class TokenNetwork(nn.Module):
    """Denoiser over occupied slots (one token per atom) and the lattice.

    An atom's token starts from the embeddings of its row and column of the periodic table and of its element. Geometry
    enters only through pairs: sines and cosines of minimum-image fractional displacements (periodic and invariant under
    a shift of the origin), a radial basis of the distance in the noisy lattice, and the lattice itself.

    Parameters
    ----------
    width, pair_width, layers
        Size of tokens, size of pair features and messages, number of layers.
    frequencies
        Number of harmonics of each fractional displacement.
    radial
        Number of Gaussian basis functions of the distance, from 0 to 8 Å.
    property_names
        Auxiliary properties the network can be conditioned on.
    """

    table: Tensor
    harmonics: Tensor

    def __init__(
        self,
        width: int = 192,
        pair_width: int = 96,
        layers: int = 5,
        frequencies: int = 10,
        radial: int = 24,
        property_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.radial = radial
        positions = torch.from_numpy(TABLE_POSITIONS).clamp(min=0)
        self.register_buffer("table", positions, persistent=False)
        harmonics = torch.tensor(HARMONICS[:frequencies], dtype=torch.float32)
        self.register_buffer("harmonics", harmonics, persistent=False)
        self.element = nn.Embedding(len(positions), width)
        self.period = nn.Embedding(N_PERIODS, width)
        self.group = nn.Embedding(N_GROUPS, width)
        self.count = nn.Linear(1, width)
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU())
        self.lattice_in = nn.Sequential(nn.Linear(6, width), nn.SiLU(), nn.Linear(width, width))
        self.properties = PropertyEmbedding(property_names, width) if property_names else None
        self.pair_geometry = nn.Linear(6 * frequencies + radial, pair_width)
        self.pair_receiver = nn.Linear(width, pair_width, bias=False)
        self.pair_sender = nn.Linear(width, pair_width, bias=False)
        self.pair_condition = nn.Linear(width, pair_width, bias=False)
        self.pair_out = nn.Sequential(nn.SiLU(), nn.Linear(pair_width, pair_width), nn.SiLU())
        self.layers = nn.ModuleList(TokenLayer(width, pair_width) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.frac_out = nn.Linear(width, 3)
        self.lattice_out = nn.Sequential(nn.Linear(2 * width, width), nn.SiLU(), nn.Linear(width, 6))
        nn.init.zeros_(self.frac_out.weight)
        nn.init.zeros_(self.frac_out.bias)

    def forward(self, batch: TokenBatch, metric: Tensor, time: Tensor) -> TokenOutput:
        """Predict coordinate noise and lattice output.

        Parameters
        ----------
        batch
            Noisy crystals.
        metric
            Metric tensor of the noisy lattices, Å², shape (B, 3, 3).
        time
            t, shape (B,).
        """
        mask = batch.mask
        n = batch.n_atoms.clamp(min=1).to(batch.frac.dtype)
        rows, columns = self.table[batch.numbers].unbind(-1)
        h = self.element(batch.numbers) + self.period(rows) + self.group(columns)
        lattice = self.lattice_in(batch.lattice)
        condition = self.time(sinusoidal(1000 * time, self.count.out_features)) + self.count(n.log()[:, None])
        if self.properties is not None:
            condition = condition + self.properties(batch.properties)
        h = h + lattice[:, None]

        displacement = wrap(batch.frac[:, None] - batch.frac[:, :, None])
        harmonics = 2 * math.pi * self.harmonics
        angles = (displacement[..., None] * harmonics).flatten(-2)
        with torch.autocast(h.device.type, enabled=False):
            squared = torch.einsum("bijx,bxy,bijy->bij", displacement, metric, displacement)
        centres = torch.linspace(0.0, 8.0, self.radial, device=h.device, dtype=h.dtype)
        distance = (squared + 1e-8).sqrt().clamp(max=20.0)
        basis = torch.exp(-(((distance[..., None] - centres) * (self.radial / 8.0)) ** 2))
        pairs = self.pair_out(
            self.pair_geometry(torch.cat([angles.sin(), angles.cos(), basis], dim=-1))
            + self.pair_receiver(h)[:, :, None]
            + self.pair_sender(h)[:, None]
            + self.pair_condition(condition)[:, None, None]
        )
        weights = (mask.to(h.dtype) / n.sqrt()[:, None])[:, None, None, :]
        for layer in self.layers:
            h = layer(h, pairs, weights, condition)
        h = self.norm(h)
        present = mask[..., None].to(h.dtype)
        frac = self.frac_out(h) * present
        frac = (frac - frac.sum(1, keepdim=True) / n[:, None, None]) * present
        pooled = (h * present).sum(1) / n[:, None]
        return TokenOutput(frac, self.lattice_out(torch.cat([pooled, lattice], dim=-1)))
