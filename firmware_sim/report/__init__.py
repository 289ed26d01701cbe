"""A run as one page that needs nothing else, and the same data as JSON.

``document`` is the data, ``page`` the HTML around it; ``report.js`` draws it with uPlot, which is in
``vendor`` with its licence (``ops/dev/vendor-uplot`` fetches it again).
"""

from firmware_sim.report.document import report_document
from firmware_sim.report.page import render

__all__ = ["render", "report_document"]
