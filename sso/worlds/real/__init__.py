"""Real prompts with constraints that a program checks: IFEval's, by lm-eval's copy of its checkers."""
