"""The 3D U-Net of UniMat's appendix (arXiv 2311.09235, Table 4), after video diffusion (arXiv 2204.03458); torch only.

The slots of an element take the place of a video's frames, periods and groups that of its pixels.
"""

from __future__ import annotations

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from generators.conditions import PropertyEmbedding
from generators.unimat.token import sinusoidal

POOLING = 3
"""Factor between levels: 9 × 18 → 3 × 6 → 1 × 2; an axis that it does not divide is left as it is."""


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(math.gcd(8, channels), channels)


def _conv(inputs: int, outputs: int, *, zero: bool = False) -> nn.Conv3d:
    """Return a 1 × 3 × 3 convolution, which mixes periods and groups within a slot."""
    conv = nn.Conv3d(inputs, outputs, (1, 3, 3), padding=(0, 1, 1))
    if zero:
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
    return conv


class ResidualBlock(nn.Module):
    """Two convolutions, the second modulated by the condition (scale and shift after its norm)."""

    def __init__(self, inputs: int, outputs: int, condition: int, dropout: float) -> None:
        super().__init__()
        self.first = nn.Sequential(_norm(inputs), nn.SiLU(), _conv(inputs, outputs))
        self.norm = _norm(outputs)
        self.modulation = nn.Linear(condition, 2 * outputs)
        self.second = nn.Sequential(nn.SiLU(), nn.Dropout(dropout), _conv(outputs, outputs, zero=True))
        self.skip = nn.Conv3d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return `x` (B, C, L, H, W) with the block's output added."""
        scale, shift = self.modulation(condition)[:, :, None, None, None].chunk(2, dim=1)
        return self.skip(x) + self.second(self.norm(self.first(x)) * (1 + scale) + shift)


class Attention(nn.Module):
    """Self-attention among the places of a slot (``table``) or among the slots of a place (``slots``)."""

    def __init__(self, channels: int, head_dim: int, *, over_slots: bool) -> None:
        super().__init__()
        self.over_slots = over_slots
        self.heads = max(1, channels // head_dim)
        self.norm = _norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.out = nn.Linear(channels, channels)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (B, C, L, H, W) with the attention's output added."""
        b, c, slots, height, width = x.shape
        tokens = self.norm(x).permute(0, 2, 3, 4, 1).reshape(b, slots, height * width, c)
        if self.over_slots:
            tokens = tokens.transpose(1, 2)
        q, k, v = self.qkv(tokens).unflatten(-1, (3, self.heads, c // self.heads)).permute(3, 0, 1, 4, 2, 5).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(-2)
        if self.over_slots:
            mixed = mixed.transpose(1, 2)
        return x + self.out(mixed).reshape(b, slots, height, width, c).permute(0, 4, 1, 2, 3)


class Stage(nn.Module):
    """A residual block, then attention over the table and over the slots."""

    def __init__(self, inputs: int, outputs: int, condition: int, head_dim: int, dropout: float) -> None:
        super().__init__()
        self.block = ResidualBlock(inputs, outputs, condition, dropout)
        self.table_attention = Attention(outputs, head_dim, over_slots=False)
        self.slot_attention = Attention(outputs, head_dim, over_slots=True)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """Return features (B, outputs, L, H, W) of `x` (B, inputs, L, H, W)."""
        return self.slot_attention(self.table_attention(self.block(x, condition)))


class UNet3D(nn.Module):
    """Denoiser over tensors of shape (channels, L, H, W).

    Equivariant to a common permutation of the slots of all elements, as there is no code of a slot's position. A
    learned embedding of each place of the table is added to the input (the paper does not tell how the network knows
    elements apart; convolutions alone know them only through padding).

    Parameters
    ----------
    inputs, outputs
        Channels of input and output.
    table
        H and W.
    width, multipliers
        Channels of the first level, and of each level in units of them.
    blocks
        Residual blocks per level on the way down, one more on the way up.
    head_dim
        Channels of an attention head.
    dropout
        Within residual blocks.
    property_names
        Auxiliary properties the network can be conditioned on.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        table: tuple[int, int],
        *,
        width: int = 64,
        multipliers: tuple[int, ...] = (1, 2, 4),
        blocks: int = 3,
        head_dim: int = 64,
        dropout: float = 0.1,
        property_names: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        condition = 4 * width
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, condition), nn.SiLU(), nn.Linear(condition, condition))
        self.properties = PropertyEmbedding(property_names, condition) if property_names else None
        self.stem = _conv(inputs, width)
        self.table = nn.Parameter(0.1 * torch.randn(1, width, 1, *table))

        def stage(inputs: int, outputs: int) -> Stage:
            return Stage(inputs, outputs, condition, head_dim, dropout)

        channels, skips, factors = width, [width], []
        sizes = table
        self.down = nn.ModuleList()
        self.pool = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            stages = nn.ModuleList()
            for _ in range(blocks):
                stages.append(stage(channels, multiplier * width))
                channels = multiplier * width
                skips.append(channels)
            self.down.append(stages)
            if level < len(multipliers) - 1:
                rows, columns = (POOLING if size % POOLING == 0 else 1 for size in sizes)
                factor = (1, rows, columns)
                sizes = (sizes[0] // rows, sizes[1] // columns)
                self.pool.append(nn.Conv3d(channels, channels, factor, stride=factor))
                skips.append(channels)
                factors.append(factor)
        self.middle = stage(channels, channels)
        self.up = nn.ModuleList()
        self.unpool = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            stages = nn.ModuleList()
            for _ in range(blocks + 1):
                stages.append(stage(channels + skips.pop(), multiplier * width))
                channels = multiplier * width
            self.up.append(stages)
            if level:
                factor = factors.pop()
                self.unpool.append(nn.Sequential(nn.Upsample(scale_factor=factor), _conv(channels, channels)))
        self.out = nn.Sequential(_norm(channels), nn.SiLU(), _conv(channels, outputs, zero=True))

    def forward(self, x: Tensor, log_snr: Tensor, properties: Tensor) -> Tensor:
        """Return the output (B, outputs, L, H, W).

        Parameters
        ----------
        x
            Input, shape (B, inputs, L, H, W).
        log_snr
            λ of each crystal's noise, from −20 to 20, shape (B,).
        properties
            Standardised auxiliary properties, shape (B, P); NaN where unknown or dropped.
        """
        condition = self.time(sinusoidal(25.0 * (log_snr + 20.0), self.width))
        if self.properties is not None:
            condition = condition + self.properties(properties)
        condition = F.silu(condition)
        h = self.stem(x) + self.table
        skips = [h]
        for level, stages in enumerate(self.down):
            for stage in cast(nn.ModuleList, stages):
                h = stage(h, condition)
                skips.append(h)
            if level < len(self.pool):
                h = self.pool[level](h)
                skips.append(h)
        h = self.middle(h, condition)
        for level, stages in enumerate(self.up):
            for stage in cast(nn.ModuleList, stages):
                h = stage(torch.cat([h, skips.pop()], dim=1), condition)
            if level < len(self.unpool):
                h = self.unpool[level](h)
        return self.out(h)
