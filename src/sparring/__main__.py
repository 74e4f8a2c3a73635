"""`python -m sparring`, which is what launchers start."""

from sparring.cli import main

if __name__ == "__main__":
    main()
