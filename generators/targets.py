"""What every generator asks of a target."""

from __future__ import annotations

from pymatgen.core import Element

from discovery.errors import InvalidInputError
from discovery.types import Target


def check_target(target: Target, max_atoms: int) -> None:
    """Raise if a target names something that is no element, or a cell of more than `max_atoms`.

    Raises
    ------
    InvalidInputError
        Naming the element, or the setting ``generator.max_atoms``.
    """
    for symbol in target.composition or target.elements or ():
        if not Element.is_valid_symbol(symbol):
            raise InvalidInputError(f"{symbol!r} is not an element")
    n_atoms = sum((target.composition or {}).values())
    if n_atoms > max_atoms:
        raise InvalidInputError(
            f"{target.label} has {n_atoms} atoms, more than {max_atoms}; set generator.max_atoms to allow it"
        )
