"""Who a device and who an operator is.

Devices are judged by the operator's origin (``service``, by way of the ``Judge`` port that ``gateway.origin``
implements); ``verdict`` is what it says, ``validity`` how long that carries a session, ``tickets`` what
stands in for it for a while, ``revocations`` what was taken back. Operators have tokens of our own
(``operator``).
"""

from gateway.identity.credential import Credential
from gateway.identity.limits import IdentityLimits
from gateway.identity.operator import (
    Operator,
    OperatorToken,
    OperatorTokenStore,
    Scope,
    authenticate,
    authorise,
    new_token,
    parse_scopes,
    token_sha256,
)
from gateway.identity.revocations import RevocationFeed, RevocationRow, Revocations, RevocationSource
from gateway.identity.service import Identity, Judge, UnconfiguredJudge
from gateway.identity.tickets import (
    TicketKey,
    TicketKeys,
    TicketKeyStore,
    Tickets,
    VoidTicketError,
)
from gateway.identity.validity import Validity, after_unknown, validity
from gateway.identity.verdict import (
    AttributeValue,
    ChannelGrant,
    ChannelKind,
    ResumedVerdict,
    Verdict,
    parse_claims,
    parse_json,
    parse_verdict,
    parse_verdict_headers,
)

__all__ = [
    "AttributeValue",
    "ChannelGrant",
    "ChannelKind",
    "Credential",
    "Identity",
    "IdentityLimits",
    "Judge",
    "Operator",
    "OperatorToken",
    "OperatorTokenStore",
    "ResumedVerdict",
    "RevocationFeed",
    "RevocationRow",
    "RevocationSource",
    "Revocations",
    "Scope",
    "TicketKey",
    "TicketKeyStore",
    "TicketKeys",
    "Tickets",
    "UnconfiguredJudge",
    "Validity",
    "Verdict",
    "VoidTicketError",
    "after_unknown",
    "authenticate",
    "authorise",
    "new_token",
    "parse_claims",
    "parse_json",
    "parse_scopes",
    "parse_verdict",
    "parse_verdict_headers",
    "token_sha256",
    "validity",
]
