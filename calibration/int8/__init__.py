"""`adc-edge calibrate`: client.onnx -> client.int8.onnx."""
