"""`adc-edge doctor`."""
