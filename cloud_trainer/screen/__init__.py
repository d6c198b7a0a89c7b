"""Screen of a trainer: its head, and a row for each device."""
