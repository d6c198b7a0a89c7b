"""CURVE keys, and who may connect."""
