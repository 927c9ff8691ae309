"""Whole passes over a call's tiles."""
