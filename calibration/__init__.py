"""The link, measured; int8, calibrated."""
