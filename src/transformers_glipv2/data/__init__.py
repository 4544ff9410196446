"""Data sets in one schema, sampling, augmentation, mixtures and the collator. Needs the `train` extra."""
