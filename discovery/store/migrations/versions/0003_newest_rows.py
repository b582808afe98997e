"""Indices by which what is new is found; why weights were trained, and by which hull."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0003"
down_revision: str | None = "0002"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None


def upgrade() -> None:
    op.create_index("ix_transitions_campaign_id_id", "transitions", ["campaign_id", "id"])
    op.create_index("ix_ledger_campaign_id_spent_id", "ledger", ["campaign_id", "spent", "id"])
    with op.batch_alter_table("checkpoints") as table:
        table.add_column(sa.Column("reason", sa.String(), nullable=False, server_default=""))
        table.add_column(sa.Column("hull_version", sa.Integer(), nullable=True))
    with op.batch_alter_table("checkpoints") as table:
        table.alter_column("reason", existing_type=sa.String(), server_default=None)


def downgrade() -> None:
    with op.batch_alter_table("checkpoints") as table:
        table.drop_column("hull_version")
        table.drop_column("reason")
    op.drop_index("ix_ledger_campaign_id_spent_id", "ledger")
    op.drop_index("ix_transitions_campaign_id_id", "transitions")
