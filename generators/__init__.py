"""Generators: crystals for targets."""
