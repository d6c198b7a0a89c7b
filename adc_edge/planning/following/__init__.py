"""The settings of a run that follows its link while it changes."""
