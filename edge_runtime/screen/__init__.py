"""Screen of `serve`: the lines before a run, its progress, and the table at its end."""
