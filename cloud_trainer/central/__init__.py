"""Evaluation of trunk and head on the trainer's own test images, with no device's help (``trainer --data``)."""
