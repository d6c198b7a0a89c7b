"""`adc-edge profile`."""
