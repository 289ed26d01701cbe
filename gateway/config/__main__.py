"""Print docs/reference/configuration.md."""

import sys

from gateway.config.describe import reference

sys.stdout.write(reference())
