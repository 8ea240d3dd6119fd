"""What each command does, beside `fit`, `validate` and `prepare`."""
