"""Protocols that judge sets of generated crystals."""
