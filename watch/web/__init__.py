"""The page of runs: a small server of its own, for reading alone."""
