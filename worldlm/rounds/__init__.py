"""One round of the world."""
