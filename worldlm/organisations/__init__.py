"""One node of a world, run by the organisation that owns its text."""
