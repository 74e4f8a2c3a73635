"""Grades of replies to read: `sparring grade` and `sparring check-checker`. Nothing is sampled, and no run is changed.

batches.py       the stored replies of a run with their grades, and the scores of each stage
grade.py         `sparring grade`: stored grades or new ones, disagreements, examples
trial.py         the checker that a command's options name; `sparring check-checker`: the rows that it is tried on, which wrong replies it
                 passes, and its faults

Nothing is imported here: check-checker needs no torch.
"""
