"""The training of the trunk on the device."""
