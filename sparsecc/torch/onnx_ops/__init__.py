"""ONNX operators as torch modules."""
