"""The folder of a run, its results.json, and the schema of that file."""
