"""Images as bytes: as few as a model's likelihood promises, and back without a loss."""
