"""Runs logged to trackers: TensorBoard, or anything with init, log and finish."""
