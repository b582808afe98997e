"""Several campaigns in one database: every row belongs to a campaign."""

from collections.abc import Sequence

import sqlalchemy as sa
from alembic import op

revision: str = "0002"
down_revision: str | None = "0001"
branch_labels: Sequence[str] | None = None
depends_on: Sequence[str] | None = None

_ID = sa.String().with_variant(sa.String(collation="C"), "postgresql")

_KEYS = {
    "checkpoints": ["id"],
    "energy_scales": ["role"],
    "evaluations": ["subject_id", "role"],
    "hull_versions": ["role", "version"],
    "phases": ["role", "id"],
    "reference_phases": ["id"],
    "steps": ["round", "step"],
    "targets": ["id"],
    "candidates": ["id"],
}
"""Tables whose keys were unique, and are so within a campaign from now on."""
_IDS = {
    "checkpoints": ["id"],
    "evaluations": ["subject_id"],
    "phases": ["id"],
    "reference_phases": ["id"],
    "targets": ["id"],
    "candidates": ["id", "target_id"],
    "transitions": ["candidate_id"],
    "ledger": ["subject_id"],
}


def upgrade() -> None:
    for name, column in (("candidates", "target_id"), ("transitions", "candidate_id")):
        with op.batch_alter_table(name) as table:
            table.drop_constraint(f"fk_{name}_{column}_{column.removesuffix('_id')}s", type_="foreignkey")
    for name, columns in (
        ("targets", ["round"]),
        ("candidates", ["round", "state"]),
        ("transitions", ["candidate_id"]),
    ):
        for column in columns:
            op.drop_index(f"ix_{name}_{column}", name)

    with op.batch_alter_table("campaign") as table:
        table.alter_column("seed", type_=sa.BigInteger(), existing_nullable=False)
        table.create_unique_constraint("uq_campaign_name", ["name"])
    for name in (*_KEYS, "sessions", "transitions", "ledger"):
        with op.batch_alter_table(name) as table:
            # whatever there is belongs to the only campaign that the database could hold until now
            table.add_column(sa.Column("campaign_id", sa.Integer(), nullable=False, server_default="1"))
        with op.batch_alter_table(name) as table:
            table.alter_column("campaign_id", existing_type=sa.Integer(), server_default=None)
            for column in _IDS.get(name, ()):
                table.alter_column(column, existing_type=sa.String(), type_=_ID, existing_nullable=False)
            if name in _KEYS:
                table.drop_constraint(f"pk_{name}", type_="primary")
                table.create_primary_key(f"pk_{name}", ["campaign_id", *_KEYS[name]])
            table.create_foreign_key(
                f"fk_{name}_campaign_id_campaign", "campaign", ["campaign_id"], ["id"], ondelete="CASCADE"
            )
    with op.batch_alter_table("targets") as table:
        table.alter_column("seed", type_=sa.BigInteger(), existing_nullable=False)
        table.create_index("ix_targets_campaign_id_round", ["campaign_id", "round"])
    with op.batch_alter_table("candidates") as table:
        table.create_foreign_key(
            "fk_candidates_campaign_id_target_id_targets",
            "targets",
            ["campaign_id", "target_id"],
            ["campaign_id", "id"],
        )
        table.create_index("ix_candidates_campaign_id_round", ["campaign_id", "round"])
        table.create_index("ix_candidates_campaign_id_state", ["campaign_id", "state"])
    with op.batch_alter_table("transitions") as table:
        table.drop_constraint("uq_transitions_candidate_id_to_state", type_="unique")
        table.create_unique_constraint(
            "uq_transitions_campaign_id_candidate_id_to_state", ["campaign_id", "candidate_id", "to_state"]
        )
        table.create_foreign_key(
            "fk_transitions_campaign_id_candidate_id_candidates",
            "candidates",
            ["campaign_id", "candidate_id"],
            ["campaign_id", "id"],
        )
    with op.batch_alter_table("ledger") as table:
        table.drop_constraint("uq_ledger_subject_id_role_kind", type_="unique")
        table.create_unique_constraint(
            "uq_ledger_campaign_id_subject_id_role_kind", ["campaign_id", "subject_id", "role", "kind"]
        )


def downgrade() -> None:
    raise NotImplementedError("several campaigns do not fit into the former schema")
