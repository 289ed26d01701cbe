"""Rollouts, and the deployments that they make."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import Field

from device_sdk.wire.names import ChannelName, DeviceId, parse_device_id
from gateway.edge.operator.body import JsonBody, NoQuery, OrderedPage, Strict
from gateway.edge.operator.devices import DEVICE
from gateway.edge.operator.fields import INTEGRAL, AnyName, DeviceName, Id, Label, Name, SelectorText
from gateway.edge.operator.paging import page, whole
from gateway.edge.operator.results import DeploymentResult, ExplanationResult, FactResult, RolloutResult
from gateway.edge.operator.route import FLEET, Answer, AnyRoute, Call, ListOf, Outcome, Route
from gateway.edge.problem import FieldError, RequestError
from gateway.fleet.acts import Replay
from gateway.identity import Scope
from gateway.ids import parse_id
from gateway.rollout import Changed, Rollout, RolloutFilter, RolloutState, SelectorError, State
from gateway.rollout.explain import Connection, explain

ROLLOUT: Final = f"{FLEET}/rollouts/{{id}}"

StateName = Literal[
    "notified",
    "received",
    "verified",
    "downloading",
    "installing",
    "rebooting",
    "committed",
    "rolled_back",
    "failed",
    "rejected",
    "timed_out",
    "cancelled",
    "superseded",
]


Percent = Annotated[int, Field(ge=1, le=100), INTEGRAL]


class RolloutBody(Strict):
    """A rollout to be started."""

    release_id: Id
    channel: Name
    percent: Percent = Field(description="Share of the devices that may get it.")
    selector: SelectorText | None = Field(
        default=None,
        description="Which of the channel's devices (selectors.md); null: all.",
    )
    name: Label | None = Field(default=None, description="null: the release's.")
    priority: Annotated[int, Field(ge=-1000, le=1000), INTEGRAL] = Field(
        default=0, description="The higher goes first where several want one component."
    )


class RolloutChangeBody(Strict):
    """How far a rollout goes."""

    percent: Percent = Field(description="Not lower than it is.")


class RolloutQuery(OrderedPage):
    """Which rollouts."""

    state: Literal["running", "paused", "aborted", "finished"] | None = Field(
        default=None, description="In this state."
    )
    channel: AnyName | None = Field(default=None, description="Aimed at this channel.")
    release_id: Id | None = Field(default=None, description="Of this release.")


class DeploymentQuery(OrderedPage):
    """Which deployments."""

    state: StateName | None = Field(default=None, description="In this state.")


class ExplainReleaseQuery(NoQuery):
    """About which release."""

    release: Id


class ExplainDeviceQuery(NoQuery):
    """About which device."""

    device: DeviceName


async def list_rollouts(call: Call[None, RolloutQuery]) -> Answer:
    rollouts, query = call.services.rollouts, call.query
    filter = RolloutFilter(
        state=None if query.state is None else RolloutState(query.state),
        channel=query.channel,
        release_id=None if query.release_id is None else parse_id(query.release_id),
    )
    return await page(
        call,
        lambda after, limit: rollouts.rollouts(
            call.fleet,
            filter=filter,
            is_newest_first=query.is_newest_first,
            after=after,
            limit=limit,
        ),
        kind=bytes,
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
            act=call.act(RolloutResult.of),
        )
    except SelectorError as error:
        raise RequestError(
            422, error.code, f"selector, {error}", errors=[FieldError("selector", str(error))]
        ) from error
    return _outcome(outcome)


async def show_rollout(call: Call[None, NoQuery]) -> Answer:
    return _answer(await call.services.rollouts.rollout(call.fleet, call.id()))


async def widen_rollout(call: Call[RolloutChangeBody, NoQuery]) -> Outcome:
    return _outcome(
        await call.services.rollouts.change(
            call.fleet,
            call.id(),
            percent=call.body.percent,
            version=call.if_match,
            now_ms=call.now_ms,
            act=call.act(_changed),
        )
    )


async def pause_rollout(call: Call[None, NoQuery]) -> Outcome:
    return _outcome(
        await call.services.rollouts.pause(call.fleet, call.id(), now_ms=call.now_ms, act=call.act(_changed))
    )


async def resume_rollout(call: Call[None, NoQuery]) -> Outcome:
    return _outcome(
        await call.services.rollouts.resume(call.fleet, call.id(), now_ms=call.now_ms, act=call.act(_changed))
    )


async def finish_rollout(call: Call[None, NoQuery]) -> Outcome:
    return _outcome(
        await call.services.rollouts.finish(call.fleet, call.id(), now_ms=call.now_ms, act=call.act(_changed))
    )


async def abort_rollout(call: Call[None, NoQuery]) -> Outcome:
    return _outcome(
        await call.services.rollouts.abort(call.fleet, call.id(), now_ms=call.now_ms, act=call.act(_changed))
    )


async def list_rollout_deployments(call: Call[None, DeploymentQuery]) -> Answer:
    return await _deployments(call, rollout_id=call.id())


async def list_device_deployments(call: Call[None, DeploymentQuery]) -> Answer:
    return await _deployments(call, device_id=call.device_id())


async def show_deployment(call: Call[None, NoQuery]) -> Answer:
    return Answer(DeploymentResult.of(await call.services.rollouts.deployment(call.fleet, call.id())))


async def show_deployment_facts(call: Call[None, NoQuery]) -> Answer:
    facts = await call.services.facts.of_deployment(call.fleet.key, call.id())
    return whole([FactResult.of(fact) for fact in facts])


async def explain_to_device(call: Call[None, ExplainReleaseQuery]) -> Answer:
    return await _explain(call, call.device_id(), parse_id(call.query.release), rollout_id=None)


async def explain_rollout(call: Call[None, ExplainDeviceQuery]) -> Answer:
    rollout = await call.services.rollouts.rollout(call.fleet, call.id())
    device_id = parse_device_id(call.query.device)
    return await _explain(call, device_id, rollout.release_id, rollout_id=rollout.id)


async def _explain(
    call: Call[Any, Any], device_id: DeviceId, release_id: bytes, *, rollout_id: bytes | None
) -> Answer:
    services = call.services
    facts = await services.explanations.facts(call.fleet.key, device_id, release_id)
    wait_s = None
    if facts.active is not None:
        wait_s = services.sessions.next_attempt_s(facts.device_key, facts.active.id)
    connection = Connection(
        is_connected=services.sessions.is_connected(facts.device_key),
        next_attempt_at=None if wait_s is None else call.now_ms + int(wait_s * 1000),
        attempts_max=services.limits.attempts_max,
    )
    reasons = explain(facts, connection, rollout_id=rollout_id)
    return Answer(ExplanationResult.of(device_id, release_id, rollout_id, reasons))


async def _deployments(call: Call[None, DeploymentQuery], **of: Any) -> Answer:
    rollouts, query = call.services.rollouts, call.query
    states = () if query.state is None else (State(query.state),)
    return await page(
        call,
        lambda after, limit: rollouts.deployments(
            call.fleet,
            states=states,
            is_newest_first=query.is_newest_first,
            after=after,
            limit=limit,
            **of,
        ),
        kind=bytes,
        key=lambda deployment: deployment.id,
        show=DeploymentResult.of,
    )


def _changed(changed: Changed) -> RolloutResult:
    return RolloutResult.of(changed.rollout)


def _outcome(outcome: Rollout | Replay) -> Outcome:
    return outcome if isinstance(outcome, Replay) else _answer(outcome)


def _answer(rollout: Rollout) -> Answer:
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
        query=RolloutQuery,
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
        query=DeploymentQuery,
        result=ListOf[DeploymentResult],
    ),
    Route(
        method="GET",
        path=f"{DEVICE}/deployments",
        operation="devices.deployments",
        scope=Scope.READ,
        summary="List a device's deployments, the oldest first.",
        handler=list_device_deployments,
        query=DeploymentQuery,
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
    Route(
        method="GET",
        path=f"{FLEET}/deployments/{{id}}/facts",
        operation="deployments.facts",
        scope=Scope.READ,
        summary="All that is known of a deployment, in the order of time. One page has it all.",
        handler=show_deployment_facts,
        result=ListOf[FactResult],
    ),
    Route(
        method="GET",
        path=f"{DEVICE}/explain",
        operation="devices.explain",
        scope=Scope.READ,
        summary="Why does this device not run a release? Every reason that stands, with its code.",
        handler=explain_to_device,
        query=ExplainReleaseQuery,
        result=ExplanationResult,
    ),
    Route(
        method="GET",
        path=f"{ROLLOUT}/explain",
        operation="rollouts.explain",
        scope=Scope.READ,
        summary="Why does a device not run the release of this rollout, as far as this rollout goes?",
        handler=explain_rollout,
        query=ExplainDeviceQuery,
        result=ExplanationResult,
    ),
)
