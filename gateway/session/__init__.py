"""A device's session: what it is sent next, what it acknowledged, when it is sent again.

``conversation`` speaks, ``updates`` and ``deliveries`` carry the two kinds of message, ``session`` is the
whole. ``lane`` counts, ``page`` writes what a device that is behind is sent, ``sessions`` are all of a node.
Transports are in ``gateway.edge``; fan-out to live sessions is ``gateway.hub``.
"""
