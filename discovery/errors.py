"""Exceptions of the engine; every message names the cause and what to do next."""

from __future__ import annotations


class DiscoveryError(Exception):
    """Base of all errors that a user can cause or mend."""


class InvalidInputError(DiscoveryError):
    """A crystal, composition, file or row that cannot be used."""


class ConfigError(DiscoveryError):
    """A configuration with an unknown key or a wrong value."""


class EnergyScaleError(DiscoveryError):
    """Energies of two scales were about to meet."""


class OracleCheckError(DiscoveryError):
    """An oracle contradicts published data or itself."""


class MissingDependencyError(DiscoveryError):
    """An external program, package, model file or API key is missing."""


class RunError(DiscoveryError):
    """A run folder that cannot be created, read, resumed or written."""
