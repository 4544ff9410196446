"""Composite scenes: object crops on backgrounds, with sentences, questions and captions made from what was placed."""
