"""`adc-edge runs`: the runs below a directory as a table."""
