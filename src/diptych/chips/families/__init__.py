"""One file a family of chips, loaded on first use."""
