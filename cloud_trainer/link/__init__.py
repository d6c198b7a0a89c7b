"""The trainer's part of `adc-edge link`."""
