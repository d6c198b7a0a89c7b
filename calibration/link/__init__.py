"""`adc-edge link`."""
