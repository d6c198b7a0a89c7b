"""ADC and its rivals at equal bytes: accuracy, bytes, plots."""
