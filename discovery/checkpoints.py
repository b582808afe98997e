"""The checkpoint format: one safetensors file whose header holds everything else as JSON; nothing is unpickled."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from discovery.errors import InvalidInputError
from discovery.files import replacing

CHECKPOINT_FORMAT = "discovery.checkpoint/1"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def save(path: Path, weights: dict[str, Tensor], metadata: dict[str, Any]) -> str:
    """Write weights and JSON metadata atomically; return the file's SHA-256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header = {"format": CHECKPOINT_FORMAT, "metadata": json.dumps(metadata, sort_keys=True)}
    with replacing(path) as temporary:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}, temporary, header)
        return sha256(temporary)


def load(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the weights and metadata that :func:`save` wrote.

    Raises
    ------
    InvalidInputError
        If the file is missing, is not safetensors, or is of another format version.
    """
    if not path.is_file():
        raise InvalidInputError(f"checkpoint {path} does not exist; give the path of a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            weights: dict[str, torch.Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise InvalidInputError(f"checkpoint {path} is not a safetensors file: {error}") from error
    if header.get("format") != CHECKPOINT_FORMAT:
        raise InvalidInputError(
            f"checkpoint {path} has format {header.get('format')!r}, this version reads {CHECKPOINT_FORMAT!r}"
        )
    return weights, json.loads(header["metadata"])
