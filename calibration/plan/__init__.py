"""The command `adc-edge plan`."""
