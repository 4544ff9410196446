"""Loaders of the formats in which people keep their own data."""
