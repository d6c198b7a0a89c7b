"""Watching: run directories as a report, a page, metrics and trackers, read by a process of its own."""
