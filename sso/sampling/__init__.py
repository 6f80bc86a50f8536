"""Sampling: engines behind one protocol (engine.py), and the triples that they draw."""
