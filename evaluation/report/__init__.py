"""The results of a study as tables, plots and a page."""
