"""Inference with a head that does not learn any more: `trainer --serve-only`."""
