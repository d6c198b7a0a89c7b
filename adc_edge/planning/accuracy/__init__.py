"""Measured accuracy of settings, and what an attacker sees of the images."""
