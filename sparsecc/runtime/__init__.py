"""The door to ONNX Runtime: sessions, runs, numerics, models run by parts."""
