"""Checkpoints: written atomically, read without executing anything, and validated before a run resumes."""
