"""Configuration files shipped with the engine; one folder per choice."""
