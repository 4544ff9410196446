"""Images from files, addresses and objects, opened in one way: upright, in RGB, within limits."""
