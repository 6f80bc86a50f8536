"""Worlds with an exact oracle."""
