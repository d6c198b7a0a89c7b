"""The model of a step's time, and the place that it waits for."""
