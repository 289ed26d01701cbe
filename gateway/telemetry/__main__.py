"""Print docs/reference/metrics.md."""

import sys

from gateway.telemetry.describe import reference

sys.stdout.write(reference())
