"""Inference on the device: trunk here and head on a trainer, or the whole model here."""
