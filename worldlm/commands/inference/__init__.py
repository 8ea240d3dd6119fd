"""Commands on the models of a finished run: export, generate, evaluate."""
