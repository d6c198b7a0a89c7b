"""In the cloud: the server, head training, many devices."""
