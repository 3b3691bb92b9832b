"""Exported programs, flat and readable."""
