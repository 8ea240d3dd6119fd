"""All commands except `fit`, `validate` and `prepare`, which are in `worldlm.cli`."""
