"""`python -m sso`."""

from sso.start import sso

if __name__ == "__main__":
    code = sso()
    from sso.jobs.command import leave

    leave(code)
