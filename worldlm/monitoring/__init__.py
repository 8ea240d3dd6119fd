"""Callbacks that measure, record and show a run; none of them changes what is trained."""
