"""The process that shows a run while it goes on: the options that ask for it, its start, and its end with the run."""
