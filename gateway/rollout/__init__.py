"""Rollouts: who should run which release, and what became of it for each device.

``rollout`` (states, buckets, boundaries), ``selector`` (which devices), ``desired`` (what one device lacks)
and ``deployment`` (the fold of what happens to it) are pure. ``service`` is what operators use, ``updates``
what sessions use; ``store`` is the port to the database. Releases themselves are in ``gateway.release``.
"""

from gateway.rollout.deployment import Deployment, Event, State
from gateway.rollout.limits import OFFER_LEN_MAX, UpdateLimits
from gateway.rollout.model import (
    Changed,
    DeploymentRow,
    NewRollout,
    Offer,
    Push,
    Pushes,
    ReportOutcome,
    RolloutFilter,
)
from gateway.rollout.rollout import Action, Rollout, RolloutState
from gateway.rollout.selector import Selector, SelectorError, Subject, parse_selector, predicate
from gateway.rollout.service import RolloutListener, RolloutService
from gateway.rollout.store import RolloutStore
from gateway.rollout.updates import Updates

__all__ = [
    "OFFER_LEN_MAX",
    "Action",
    "Changed",
    "Deployment",
    "DeploymentRow",
    "Event",
    "NewRollout",
    "Offer",
    "Push",
    "Pushes",
    "ReportOutcome",
    "Rollout",
    "RolloutFilter",
    "RolloutListener",
    "RolloutService",
    "RolloutState",
    "RolloutStore",
    "Selector",
    "SelectorError",
    "State",
    "Subject",
    "UpdateLimits",
    "Updates",
    "parse_selector",
    "predicate",
]
