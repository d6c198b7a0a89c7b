"""The optimizer of trunk and head: its settings without torch, and its steps with torch."""
