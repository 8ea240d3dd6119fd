"""The mathematics of a federation: functions on tensors that need only torch."""
