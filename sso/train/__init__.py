"""How models are trained: every training starts, resumes and ends the same way (run.py)."""
