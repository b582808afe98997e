"""The store: every step of a campaign in one database, written by the driver alone."""

from discovery.store.machine import TRANSITIONS, IllegalTransitionError
from discovery.store.store import (
    Arrow,
    CampaignRecord,
    CheckpointRecord,
    History,
    ReferenceRecord,
    Store,
    TargetRecord,
)
from discovery.store.urls import sqlite_url

__all__ = [
    "TRANSITIONS",
    "Arrow",
    "CampaignRecord",
    "CheckpointRecord",
    "History",
    "IllegalTransitionError",
    "ReferenceRecord",
    "Store",
    "TargetRecord",
    "sqlite_url",
]
