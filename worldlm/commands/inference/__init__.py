"""What was trained, taken home: exported, asked and measured by the name of a run."""
