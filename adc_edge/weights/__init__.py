"""Weights files: read without running anything in them, translated to timm's names, and fitted to a model."""
