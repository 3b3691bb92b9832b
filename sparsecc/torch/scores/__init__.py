"""Importance scores that need torch."""
