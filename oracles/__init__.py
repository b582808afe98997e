"""Oracles: energies of crystals, from model potentials to DFT."""
