"""Training: one run, from a checked configuration to a summary."""
