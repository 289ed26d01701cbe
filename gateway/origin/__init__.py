"""The origin client: the only thing that makes requests to the operator's side.

``open_judge`` gives the implementation of ``identity.Judge`` that the configuration asks for,
``open_uplink_backend`` where devices' uplinks go.
"""

from gateway.origin.circuit import Circuit, CircuitState, Outcome
from gateway.origin.forward_auth import ForwardAuthJudge
from gateway.origin.http import Answer, OriginHTTP
from gateway.origin.introspection import IntrospectionJudge
from gateway.origin.judge import open_judge, open_uplink_backend
from gateway.origin.jwks import KeyRingSource
from gateway.origin.jwt import JWTJudge
from gateway.origin.limits import OriginLimits
from gateway.origin.uplink import UplinkBackend

__all__ = [
    "Answer",
    "Circuit",
    "CircuitState",
    "ForwardAuthJudge",
    "IntrospectionJudge",
    "JWTJudge",
    "KeyRingSource",
    "OriginHTTP",
    "OriginLimits",
    "Outcome",
    "UplinkBackend",
    "open_judge",
    "open_uplink_backend",
]
