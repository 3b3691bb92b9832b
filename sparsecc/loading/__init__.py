"""From a model file of unknown origin to a graph that is safe to work on. See `sparsecc.worker`."""
