"""The runs of a study."""
