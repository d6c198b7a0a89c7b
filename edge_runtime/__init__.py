"""On the device: engines, the trunk training shim, the loop behind `serve`."""
