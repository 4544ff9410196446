"""Random streams that depend on names and numbers only, never on what was drawn before."""

import hashlib
import random


def derive_seed(*parts: int | str) -> int:
    """
    A seed in [0, 2^63) from any number of parts, the same on every machine and in every process.

    Args:
        parts (`int` or `str`): what the stream belongs to, for example `(seed, "flip", sample_index)`.
    """
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def derive_random(*parts: int | str) -> random.Random:
    """`random.Random` seeded by `derive_seed`."""
    return random.Random(derive_seed(*parts))
