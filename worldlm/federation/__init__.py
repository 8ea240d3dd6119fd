"""The mathematics of a federation: torch only, tensors in and tensors out."""
