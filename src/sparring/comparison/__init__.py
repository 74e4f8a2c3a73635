"""`sparring compare`: the players of several runs on the same held-out rows, with errors, tests and what each has cost.

statistics.py  paired differences: errors, intervals, tests. Pure
arms.py        the players of a run, their values per row and their cost
compare.py     which players and metrics are compared, the numbers of each, and notes: what is unfinished, left out, or was computed with
               other settings
tables.py      the tables for people; page.py adds plots
pairing.py     when the scores of two players can be paired
seeds.py       games of several seeds, analysed together
command.py     the command `sparring compare`: its arguments, and JSON for programs
"""
