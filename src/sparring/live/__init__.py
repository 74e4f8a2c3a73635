"""Status of a run from another process or machine. The run directory is only read, and may be mounted read-only."""
