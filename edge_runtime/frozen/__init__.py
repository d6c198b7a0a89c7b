"""A device with a frozen trunk that sends each image once."""
