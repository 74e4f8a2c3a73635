"""Looking at a run from another process or another machine: it is only read, and may be mounted read-only."""
