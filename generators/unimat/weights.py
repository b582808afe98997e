"""UniMat's checkpoints: weights of a variant, crystals to replay in fine-tuning, and crystals that guard it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from discovery import checkpoints
from discovery.errors import InvalidInputError
from generators.data import CrystalArrays
from generators.unimat.dense import DenseModel, DenseModelConfig
from generators.unimat.model import TokenModel, TokenModelConfig
from generators.unimat.representation import TABLE_SHA256

Model = TokenModel | DenseModel

_DATA_TYPES = {"lattice": "f4", "n_atoms": "u1", "frac": "f4", "numbers": "u1", "properties": "f4"}


def create_model(config: TokenModelConfig | DenseModelConfig) -> Model:
    """Return the untrained model of a configuration."""
    return TokenModel(config) if isinstance(config, TokenModelConfig) else DenseModel(config)


def save_checkpoint(
    path: Path, model: Model, replay: CrystalArrays, held_out: CrystalArrays, metadata: Mapping[str, Any]
) -> str:
    """Write a checkpoint and return its SHA-256."""
    tensors = {f"model.{name}": tensor.float() for name, tensor in model.state_dict().items()}
    for group, data in (("replay", replay), ("held_out", held_out)):
        for name, dtype in _DATA_TYPES.items():
            tensors[f"{group}.{name}"] = torch.from_numpy(getattr(data, name).astype(dtype))
    described = {"kind": model.kind, "model": asdict(model.config), "periodic_table_sha256": TABLE_SHA256}
    return checkpoints.save(path, tensors, {**metadata, **described})


def load_checkpoint(path: Path) -> tuple[Model, CrystalArrays, CrystalArrays, dict[str, Any]]:
    """Return the model, the crystals to replay, the held-out crystals and the metadata of a checkpoint.

    Raises
    ------
    InvalidInputError
        If it is no checkpoint of UniMat, or was trained on another map of the elements.
    """
    tensors, metadata = checkpoints.load(path)
    kind = metadata.get("kind")
    if kind not in (TokenModel.kind, DenseModel.kind):
        raise InvalidInputError(
            f"checkpoint {path} is of kind {kind!r}; unimat reads {TokenModel.kind!r} and {DenseModel.kind!r}"
        )
    if metadata.get("periodic_table_sha256", TABLE_SHA256) != TABLE_SHA256:
        raise InvalidInputError(
            f"checkpoint {path} was trained on another map of the elements to the periodic table; train it again"
        )
    groups: dict[str, dict[str, Tensor]] = {"model": {}, "replay": {}, "held_out": {}}
    for name, tensor in tensors.items():
        group, _, rest = name.partition(".")
        groups[group][rest] = tensor
    config = (TokenModelConfig if kind == TokenModel.kind else DenseModelConfig).from_dict(metadata["model"])
    model = create_model(config)
    model.load_state_dict(groups["model"])
    replay, held_out = (_arrays(groups[name], model.property_names) for name in ("replay", "held_out"))
    return model, replay, held_out, metadata


def _arrays(tensors: dict[str, Tensor], property_names: tuple[str, ...]) -> CrystalArrays:
    fields = {name: tensors[name].numpy() for name in _DATA_TYPES}
    return CrystalArrays(
        fields["lattice"].astype(np.float64),
        fields["n_atoms"].astype(np.int64),
        fields["frac"].astype(np.float64),
        fields["numbers"].astype(np.int64),
        fields["properties"].astype(np.float64),
        property_names,
    )
