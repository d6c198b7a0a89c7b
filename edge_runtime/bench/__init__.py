"""`adc-edge bench`."""
