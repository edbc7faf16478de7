"""SmaLLM trains, compares and serves small next-word language models."""

__version__ = "0.1.0"
