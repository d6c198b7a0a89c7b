"""State that all ranks have alike or keep together: checkpoints, the run directory, the class names."""
