"""Print docs/reference/api.md."""

import sys

from gateway.edge.operator.reference import reference

sys.stdout.write(reference())
