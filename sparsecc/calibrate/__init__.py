"""What calibration samples tell: the inputs of every layer that sums over channels, and their moments."""
