"""Everything that the operator API's handlers work with; ``gateway.app`` fills it."""

from __future__ import annotations

from dataclasses import dataclass, field

from gateway.clock import Clock
from gateway.edge.artifacts import ArtifactTransfers
from gateway.edge.operator.lately import Lately
from gateway.edge.operator.limits import OperatorLimits
from gateway.edge.operator.ports import (
    AlertService,
    AuditLog,
    DeviceCredentials,
    DeviceSessions,
    Explanations,
    MessageFacts,
    OnlineKeys,
    RevocationFeed,
    RevocationStore,
    TokenStore,
)
from gateway.fleet.store import FleetStore
from gateway.identity import OperatorToken
from gateway.release.service import ReleaseService
from gateway.rollout import RolloutService


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorServices:
    """Services and bounds, given once.

    Attributes:
        believed: Operators' tokens as they were read lately, by hash.
    """

    fleets: FleetStore
    alerts: AlertService
    releases: ReleaseService
    rollouts: RolloutService
    transfers: ArtifactTransfers
    online_keys: OnlineKeys
    sessions: DeviceSessions
    credentials: DeviceCredentials
    tokens: TokenStore
    revocations: RevocationStore
    feed: RevocationFeed
    audit: AuditLog
    facts: MessageFacts
    explanations: Explanations
    clock: Clock
    limits: OperatorLimits = field(default_factory=OperatorLimits)
    believed: Lately[bytes, OperatorToken] = field(init=False)

    def __post_init__(self) -> None:
        limits = self.limits
        believed: Lately[bytes, OperatorToken] = Lately(
            clock=self.clock, keep_s=limits.token_cache_s, entries_max=limits.token_cache_entries_max
        )
        object.__setattr__(self, "believed", believed)
