"""ONNX export, compared with the model."""
