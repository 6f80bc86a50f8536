"""Reward models: Bradley-Terry training on preference pairs, and RewardBench's sections and weights."""
