"""Rollouts, and the deployments that they make."""

from __future__ import annotations

from typing import Any, Final

from pydantic import Field

from device_sdk.wire.names import ChannelName
from gateway.edge.operator.body import JsonBody, NoQuery, Page, Strict
from gateway.edge.operator.devices import DEVICE
from gateway.edge.operator.fields import Id, Label, Name
from gateway.edge.operator.paging import page
from gateway.edge.operator.results import DeploymentResult, RolloutResult
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.edge.problem import FieldError, RequestError
from gateway.fleet.store import Replay
from gateway.identity import Scope
from gateway.ids import parse_id
from gateway.rollout import SelectorError

ROLLOUT: Final = f"{FLEET}/rollouts/{{id}}"
SELECTOR_LEN_MAX: Final = 4096


class RolloutBody(Strict):
    """A rollout to be started."""

    release_id: Id
    channel: Name
    percent: int = Field(ge=1, le=100, description="Share of the devices that may get it.")
    selector: str | None = Field(
        default=None,
        min_length=1,
        max_length=SELECTOR_LEN_MAX,
        pattern=r"^[^\x00]*$",
        description="Which of the channel's devices (selectors.md); null: all.",
    )
    name: Label | None = Field(default=None, description="null: the release's.")
    priority: int = Field(
        default=0, ge=-1000, le=1000, description="The higher goes first where several want one component."
    )


class RolloutChangeBody(Strict):
    """How far a rollout goes."""

    percent: int = Field(ge=1, le=100, description="Not lower than it is.")


async def list_rollouts(call: Call[None, Page]) -> Answer:
    rollouts = call.services.rollouts
    return await page(
        call,
        lambda after, limit: rollouts.rollouts(call.fleet, after=after or None, limit=limit),
        first=b"",
        key=lambda rollout: rollout.id,
        show=RolloutResult.of,
    )


async def start_rollout(call: Call[RolloutBody, NoQuery]) -> Outcome:
    body = call.body
    try:
        outcome = await call.services.rollouts.start(
            call.fleet,
            release_id=parse_id(body.release_id),
            channel=ChannelName(body.channel),
            percent=body.percent,
            selector=body.selector,
            name=body.name,
            priority=body.priority,
            now_ms=call.now_ms,
            idempotency=call.idempotency(RolloutResult.of),
        )
    except SelectorError as error:
        raise RequestError(
            422, error.code, f"selector, {error}", errors=[FieldError("selector", str(error))]
        ) from error
    return outcome if isinstance(outcome, Replay) else _answer(outcome)


async def show_rollout(call: Call[None, NoQuery]) -> Answer:
    return _answer(await call.services.rollouts.rollout(call.fleet, call.id()))


async def widen_rollout(call: Call[RolloutChangeBody, NoQuery]) -> Answer:
    rollout = await call.services.rollouts.change(
        call.fleet, call.id(), percent=call.body.percent, version=call.if_match, now_ms=call.now_ms
    )
    return _answer(rollout)


async def pause_rollout(call: Call[None, NoQuery]) -> Answer:
    return _answer(await call.services.rollouts.pause(call.fleet, call.id(), now_ms=call.now_ms))


async def resume_rollout(call: Call[None, NoQuery]) -> Answer:
    return _answer(await call.services.rollouts.resume(call.fleet, call.id(), now_ms=call.now_ms))


async def finish_rollout(call: Call[None, NoQuery]) -> Answer:
    return _answer(await call.services.rollouts.finish(call.fleet, call.id(), now_ms=call.now_ms))


async def abort_rollout(call: Call[None, NoQuery]) -> Answer:
    return _answer(await call.services.rollouts.abort(call.fleet, call.id(), now_ms=call.now_ms))


async def list_rollout_deployments(call: Call[None, Page]) -> Answer:
    return await _deployments(call, rollout_id=call.id())


async def list_device_deployments(call: Call[None, Page]) -> Answer:
    return await _deployments(call, device_id=call.device_id())


async def show_deployment(call: Call[None, NoQuery]) -> Answer:
    return Answer(DeploymentResult.of(await call.services.rollouts.deployment(call.fleet, call.id())))


async def _deployments(call: Call[None, Page], **of: Any) -> Answer:
    rollouts = call.services.rollouts
    return await page(
        call,
        lambda after, limit: rollouts.deployments(call.fleet, after=after or None, limit=limit, **of),
        first=b"",
        key=lambda deployment: deployment.id,
        show=DeploymentResult.of,
    )


def _answer(rollout: Any) -> Answer:
    return Answer(RolloutResult.of(rollout), version=rollout.version)


def _action(verb: str, summary: str, handler: Any, errors: dict[str, int]) -> AnyRoute:
    return Route(
        method="POST",
        path=f"{ROLLOUT}/{verb}",
        operation=f"rollouts.{verb}",
        scope=Scope.ROLLOUTS,
        summary=summary,
        handler=handler,
        result=RolloutResult,
        errors=errors,
    )


ROUTES: Final[tuple[AnyRoute, ...]] = (
    Route(
        method="GET",
        path=f"{FLEET}/rollouts",
        operation="rollouts.list",
        scope=Scope.READ,
        summary="List the rollouts, the oldest first, without their `target_count`.",
        handler=list_rollouts,
        query=Page,
        result=ListOf[RolloutResult],
    ),
    Route(
        method="POST",
        path=f"{FLEET}/rollouts",
        operation="rollouts.start",
        scope=Scope.ROLLOUTS,
        summary="Start a rollout of a release to a share of a channel's devices.",
        handler=start_rollout,
        body=JsonBody(RolloutBody),
        statuses=(201,),
        result=RolloutResult,
        errors={"bad_selector": 422, "wrong_kind": 409, "artifact_missing": 409},
        location=ROLLOUT,
        takes_idempotency_key=True,
    ),
    Route(
        method="GET",
        path=ROLLOUT,
        operation="rollouts.show",
        scope=Scope.READ,
        summary="Show a rollout and how many of its deployments are in each state.",
        handler=show_rollout,
        result=RolloutResult,
        is_versioned=True,
    ),
    Route(
        method="PATCH",
        path=ROLLOUT,
        operation="rollouts.widen",
        scope=Scope.ROLLOUTS,
        summary="Widen a rollout. It never narrows: pause or abort it.",
        handler=widen_rollout,
        body=JsonBody(RolloutChangeBody),
        result=RolloutResult,
        errors={"boundary_moves_up": 409, "rollout_state": 409},
        is_versioned=True,
    ),
    _action(
        "pause",
        "Notify no device and send nothing again until it is resumed.",
        pause_rollout,
        {"rollout_state": 409},
    ),
    _action("resume", "Go on with a paused rollout.", resume_rollout, {"rollout_state": 409}),
    _action(
        "finish",
        "Admit no more devices. Deployments under way go on to their end.",
        finish_rollout,
        {"rollout_state": 409},
    ),
    _action(
        "abort",
        "End it. No device is notified after this is answered; those under way are told to cancel.",
        abort_rollout,
        {"rollout_state": 409},
    ),
    Route(
        method="GET",
        path=f"{ROLLOUT}/deployments",
        operation="rollouts.deployments",
        scope=Scope.READ,
        summary="List a rollout's deployments, the oldest first.",
        handler=list_rollout_deployments,
        query=Page,
        result=ListOf[DeploymentResult],
    ),
    Route(
        method="GET",
        path=f"{DEVICE}/deployments",
        operation="devices.deployments",
        scope=Scope.READ,
        summary="List a device's deployments, the oldest first.",
        handler=list_device_deployments,
        query=Page,
        result=ListOf[DeploymentResult],
    ),
    Route(
        method="GET",
        path=f"{FLEET}/deployments/{{id}}",
        operation="deployments.show",
        scope=Scope.READ,
        summary="Show a deployment.",
        handler=show_deployment,
        result=DeploymentResult,
    ),
)
