"""A trunk that is frozen, at once or on the way, and the run whose device sends some of its epochs only."""
