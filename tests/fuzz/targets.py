"""Everything that reads files, by name."""

from tests.fuzz import folders, inputs

TARGETS = inputs.TARGETS | folders.TARGETS
