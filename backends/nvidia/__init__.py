"""TensorRT, TensorRT-RTX and trtexec: building, caching, running and profiling engines."""
