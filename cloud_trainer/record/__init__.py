"""The record of a trainer's run for those who watch it: metrics of steps and evaluations, and events."""
