"""A fleet that can be broken on purpose: seeded virtual devices on the real SDK.

Only what surrounds the SDK is simulated: flash and power (``flash``), the bootloader (``bootloader``), the
link (``link``, ``download``). What happens to each device is drawn from one seed (``dice``), so that a run
can be replayed. ``scenario`` says which devices there are, ``device`` is one of them, ``simulation`` all of
them, ``result`` what came of it. No gateway is imported: a device knows an address, its fleet, its id, its
token and the release keys.
"""
