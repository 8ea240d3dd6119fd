"""Checkpoints: written whole or not at all, read without executing anything, validated before a run continues."""
