"""Choices that a run makes once, before its first step, from measurements: the engine, and the messages of a step."""
