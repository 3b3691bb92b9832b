"""The front of what a model can be compiled to: many plans made and measured, those kept that nothing beats."""
