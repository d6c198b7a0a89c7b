"""TensorRT engines: built, cached, checked and run on the board."""
