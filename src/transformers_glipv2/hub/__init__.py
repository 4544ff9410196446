"""Checkpoints and Spaces on the Hub: checks of what would be published, cards, and the upload."""
