"""CURVE keys: key files, the authentication of devices, and the command `adc-edge keys`."""
