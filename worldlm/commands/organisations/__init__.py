"""Commands of organisations that each run one node of a world."""
