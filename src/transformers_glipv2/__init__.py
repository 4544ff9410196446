"""Open GLIPv2 for Hugging Face transformers."""
