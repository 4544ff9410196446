"""Released GLIP checkpoints to our folders, and folders that load without this package."""
