"""`python -m sparring.planning` prints the table of docs/memory.md."""

import sys

from sparring.planning.modes import memory_table

sys.stdout.write(memory_table())
