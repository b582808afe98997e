"""Alembic migrations of the store; applied when a run folder is created or resumed."""
