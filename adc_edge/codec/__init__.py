"""A tensor <-> bytes, for each precision."""
