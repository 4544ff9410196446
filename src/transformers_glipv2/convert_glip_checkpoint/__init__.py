"""`python -m transformers_glipv2.convert_glip_checkpoint`: see `conversion.convert_glip_checkpoint`."""
