"""Everything that reads files, by name."""

from tests.fuzz import inputs

TARGETS = inputs.TARGETS
