"""`python -m rewardbench`."""

from rewardbench.cli import main

if __name__ == "__main__":
    main()
