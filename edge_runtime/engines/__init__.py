"""Engines that run trunk + ADC, and how one is chosen."""
