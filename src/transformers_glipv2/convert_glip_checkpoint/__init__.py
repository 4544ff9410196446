"""`python -m transformers_glipv2.convert_glip_checkpoint`: see `conversion.convert_glip_checkpoint`."""

from transformers_glipv2.conversion.convert_glip_checkpoint import main

__all__ = ["main"]
