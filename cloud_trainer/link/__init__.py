"""Measurements of links, and what the trainer's work for others leaves a device."""
