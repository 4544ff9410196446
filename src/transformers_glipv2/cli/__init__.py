"""What the scripts of examples/, benchmarks/ and hub_upload/ share: flags, errors, and the frame of a run."""
