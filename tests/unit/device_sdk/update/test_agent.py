"""A whole update, from notice to confirmation."""

from __future__ import annotations

from tests.unit.device_sdk.update.world import IMAGE, World, envelope, manifest_of


async def test_an_update_runs_from_notice_to_committed() -> None:
    world = World()
    agent = world.open_trusting()
    assert await agent.receive_update(world.update())
    await world.work()
    assert [state for state, _ in world.told()] == [
        "verified",
        "downloading",
        "installing",
        "rebooting",
        "committed",
    ]
    assert world.running_image() == IMAGE
    manifest = manifest_of(envelope())
    installed = world.agent.installed()["main"]
    assert (installed.sequence, installed.version) == (5, "1.2")
    assert (installed.digest, installed.is_confirmed) == (manifest.digest, True)
