"""Grades of replies to read: `sparring grade` and `sparring check-checker`. Nothing is sampled, and no run is changed.

grade.py  `sparring grade`: the stored replies of a run with their grades, stored or new; disagreements, examples
trial.py  the checker that a command's options name; `sparring check-checker`: the rows that it is tried on, which wrong replies it
          passes, and its faults

Nothing is imported here: check-checker needs no torch.
"""
