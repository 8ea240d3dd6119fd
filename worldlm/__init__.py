"""WorldLM: language models trained across federations of federations."""

__version__ = "0.1.0"
