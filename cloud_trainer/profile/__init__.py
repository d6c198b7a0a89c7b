"""The speed of the head, which the trainer tells a device that asks."""
