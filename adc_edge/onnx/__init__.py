"""Everything that export, calibration and the device ask about ONNX graphs."""
