"""Atomic writes, and the commit that files belong to."""
