"""Run directories: what they hold, and what is new in them."""
