"""Agents: which compositions to ask for and which candidates to compute."""
