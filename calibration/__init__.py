"""The link, measured."""
