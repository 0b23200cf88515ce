"""ONNX out, and the check against onnxruntime."""
