"""UniMat: diffusion on the periodic-table representation of crystals (arXiv 2311.09235)."""
