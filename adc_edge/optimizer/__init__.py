"""The optimizer of either half: its settings without torch, and its steps."""
