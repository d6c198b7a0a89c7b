"""Everything on disk: bundles, checkpoints, journals, run directories."""
