"""The model of a step's time."""
