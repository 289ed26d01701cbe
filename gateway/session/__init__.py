"""A device's session: what it is sent next, what it acknowledged, when it is sent again.

``session`` decides, ``lane`` counts, ``page`` writes what a device that is behind is sent. Transports are in
``gateway.edge``; fan-out to live sessions is ``gateway.hub``.
"""
