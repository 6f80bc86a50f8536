"""`python -m sso`."""

from sso.cli import main
from sso.jobs.command import leave

if __name__ == "__main__":
    leave(main())
