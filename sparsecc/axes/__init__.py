"""The axis algebra and the arithmetic of sizes; it knows nothing of ONNX or torch."""
