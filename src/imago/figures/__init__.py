"""Pictures of runs and models: one file each."""
