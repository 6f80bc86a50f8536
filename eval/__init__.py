"""Evaluation: benchmarks through lm-eval, answers to open prompts, judges, data quality, statistics."""
