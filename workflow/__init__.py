"""The workflow: which jobs an experiment takes, what they cost, and the rules that run them."""
