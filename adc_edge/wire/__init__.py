"""The messages between a device and its trainer, and the sockets that carry them."""
