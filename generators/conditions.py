"""Auxiliary properties as conditions of a network; torch only."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

SPACE_GROUP = "space_group"
"""Property whose values are categories: the number of the space group, 1–230."""

N_SPACE_GROUPS = 230


class PropertyEmbedding(nn.Linear):
    """Sum of what is known of a crystal: a linear map of its scalar properties and a vector of its space group.

    Parameters
    ----------
    names
        Names of the properties, in the order of their columns.
    width
        Size of the embedding.
    """

    def __init__(self, names: Sequence[str], width: int) -> None:
        scalars = [index for index, name in enumerate(names) if name != SPACE_GROUP]
        with warnings.catch_warnings(action="ignore"):  # without scalars there is nothing to initialise
            super().__init__(2 * len(scalars), width)
        self.scalars = scalars
        self.space_group_column = names.index(SPACE_GROUP) if SPACE_GROUP in names else None
        if self.space_group_column is not None:
            self.space_group = nn.Embedding(N_SPACE_GROUPS + 1, width, padding_idx=0)
            nn.init.normal_(self.space_group.weight[1:], std=0.3)  # of the size of the linear map's columns

    def forward(self, properties: Tensor) -> Tensor:
        """Return the embedding, shape (B, width), of properties (B, P): standardised scalars, NaN where unknown."""
        scalars = properties[:, self.scalars]
        known = torch.isfinite(scalars)
        values = torch.where(known, scalars, 0.0)
        embedding = super().forward(torch.cat([values, known.to(values.dtype)], dim=-1))
        if self.space_group_column is None:
            return embedding
        return embedding + self.space_group(properties[:, self.space_group_column].nan_to_num(0.0).long())


def hide(properties: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Return properties (B, P) with NaN for all of a `share` of the crystals, and for half of the others' values.

    So a network learns every combination of known properties.
    """
    uniform = torch.rand(len(properties), 1 + properties.shape[1], generator=generator).to(properties.device)
    hidden = (uniform[:, :1] < share) | (uniform[:, 1:] < 0.5)
    return torch.where(hidden, torch.nan, properties)
