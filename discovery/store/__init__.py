"""The store: every step of a campaign in one database, written by the driver alone."""

from discovery.store.machine import TRANSITIONS, IllegalTransitionError
from discovery.store.store import CheckpointRecord, ReferenceRecord, Store, TargetRecord

__all__ = ["TRANSITIONS", "CheckpointRecord", "IllegalTransitionError", "ReferenceRecord", "Store", "TargetRecord"]
