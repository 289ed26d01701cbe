"""The verdict of a session that lasts: asked for again in time, and the session ends if it is not good.

Sessions of single requests are judged with each of them; a WebSocket or a stream stands for hours on what the
origin said at its beginning. How long that carries is ``identity.validity``.
"""

from __future__ import annotations

from device_sdk.wire.close_codes import CloseCode
from gateway.edge.device.admission import Admission, close_code_of
from gateway.errors import CredentialRefusedError, OriginUnavailableError, StorageUnavailableError
from gateway.identity import Credential, Validity, Verdict, after_unknown, validity
from gateway.session.session import Session


class Watched(Session):
    """What such sessions have in common.

    Args:
        credential: ``Credential.packed`` of ``Identity.kept``; empty as long as each request is judged.
    """

    __slots__ = ("_admission", "_credential", "_is_checking", "_validity")

    def __init__(
        self, admission: Admission, verdict: Verdict, *, credential: str, is_json: bool, now: float
    ) -> None:
        super().__init__(admission.node, verdict, is_json=is_json, now=now)
        self._admission = admission
        self._credential = credential
        self._is_checking = False
        self._validity = self._valid(verdict)

    @property
    def credential(self) -> Credential:
        """What it stands on; only where it was kept."""
        return Credential.unpacked(self._credential)

    def judged(self, verdict: Verdict) -> None:
        super().judged(verdict)
        self._validity = self._valid(verdict)

    def _valid(self, verdict: Verdict) -> Validity:
        return validity(verdict, limits=self._admission.identity.limits, jitter=self.node.random.random())

    def _visit_verdict(self) -> None:
        now_ms = self.node.clock.now_ms()
        if now_ms >= self._validity.ends_at:
            self.close(CloseCode.VERDICT_EXPIRED)
        elif now_ms >= self._validity.next_check_at and not self._is_checking:
            self._is_checking = True
            self.node.spawn(self._check(), name=f"device.check[{self.verdict.device_id}]")

    async def _check(self) -> None:
        try:
            await self._admission.revalidate(self, self.credential)
            await self._admission.give_ticket(self)
        except CredentialRefusedError as error:
            self.close(close_code_of(error))
        except (OriginUnavailableError, StorageUnavailableError) as error:
            self._validity = after_unknown(
                self._validity,
                now=self.node.clock.now_ms(),
                retry_after_s=error.retry_after_s or 1.0,
                jitter=self.node.random.random(),
            )
        finally:
            self._is_checking = False
