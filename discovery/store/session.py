"""A database session that sees and writes the rows of one campaign, although a database may hold several."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event, inspect
from sqlalchemy.orm import ORMExecuteState, Session, with_loader_criteria

from discovery.store.tables import OfCampaign

_OF_KEY = {"campaign_in_key": True}
"""Marks statements that the key of a row restricts to the campaign."""


class CampaignSession(Session):
    """A session bound to one campaign.

    Every ORM statement is restricted to its rows, whoever writes the statement; what is added is given its id; and
    keys are given to :meth:`get` without the campaign's id, which is part of the key then and no further restriction.
    """

    def __init__(self, engine: Engine, campaign_id: int) -> None:
        super().__init__(engine)
        self.campaign_id = campaign_id

    def get(self, entity: Any, ident: Any, **options: Any) -> Any:
        """Return the row of this campaign with the key `ident`, or None; :meth:`get_one` comes here as well."""
        if inspect(entity).primary_key[0].name != "campaign_id":
            return super().get(entity, ident, **options)
        key = (self.campaign_id, *(ident if isinstance(ident, tuple) else (ident,)))
        options["execution_options"] = {**(options.get("execution_options") or {}), **_OF_KEY}
        return super().get(entity, key, **options)


@event.listens_for(CampaignSession, "do_orm_execute")
def _restrict(state: ORMExecuteState) -> None:
    session = state.session
    if state.execution_options.get("campaign_in_key"):
        return
    if isinstance(session, CampaignSession) and not state.is_column_load and not state.is_relationship_load:
        campaign_id = session.campaign_id
        state.statement = state.statement.options(
            with_loader_criteria(OfCampaign, lambda row: row.campaign_id == campaign_id, include_aliases=True)
        )


@event.listens_for(CampaignSession, "before_attach")
def _assign(session: Session, row: Any) -> None:
    if isinstance(session, CampaignSession) and isinstance(row, OfCampaign):
        row.campaign_id = session.campaign_id
