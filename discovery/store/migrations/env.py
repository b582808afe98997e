"""Alembic environment; the connection is handed over by `discovery.store.schema`."""

from alembic import context

from discovery.store.tables import Base

context.configure(
    connection=context.config.attributes["connection"], target_metadata=Base.metadata, render_as_batch=True
)
with context.begin_transaction():
    context.run_migrations()
