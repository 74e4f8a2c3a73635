"""`sparring compare`: the players of several runs on the same held-out rows, with errors, tests and what each has cost.

statistics.py  paired differences: errors, intervals, tests. Pure
arms.py        the players of a run, their values per row and their cost
compare.py     which players and metrics are compared, and the numbers of each
tables.py      for people, and page.py with plots
pairing.py     when the scores of two players can be paired
seeds.py       what the games of several seeds say together
command.py     from the command line's words to all of these, and JSON for programs
"""
