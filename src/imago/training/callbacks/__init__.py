"""What happens beside training: one file each."""
