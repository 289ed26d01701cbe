"""The command line: ``fleetcast``, for operators.

``program`` puts the commands together; each noun has a module. There are three kinds of command: those of the
machine that runs the gateway (``local``), those that work offline (``keys``, most of ``releases``), and those
that talk to a gateway through its operator API (``api``; all others). Heavy imports stand inside the
commands, so that ``--help`` and completion stay fast.
"""

from gateway.cli.program import main

__all__ = ["main"]
