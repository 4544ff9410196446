"""Encoders that transformers does not have, or not fast enough."""
