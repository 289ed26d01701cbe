"""Everything that the operator API's handlers work with; ``gateway.app`` fills it."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.clock import Clock
from gateway.edge.artifacts import ArtifactTransfers
from gateway.edge.operator.limits import OperatorLimits
from gateway.edge.operator.ports import AlertService, DeviceSessions, OnlineKeys
from gateway.fleet.store import FleetStore
from gateway.release.service import ReleaseService
from gateway.rollout import RolloutService


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorServices:
    """Services and bounds, given once."""

    fleets: FleetStore
    alerts: AlertService
    releases: ReleaseService
    rollouts: RolloutService
    transfers: ArtifactTransfers
    online_keys: OnlineKeys
    sessions: DeviceSessions
    clock: Clock
    limits: OperatorLimits = field(default_factory=OperatorLimits)
