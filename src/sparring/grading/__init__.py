"""Grades of replies for people to read: `sparring grade` and `sparring check-checker`. Nothing is sampled, and no run is changed.

options.py       the checker that a command's options name
batches.py          the stored replies of a run, with their stored grades
outcome.py       statistics of grades: pass rates, disagreements, examples
grade.py         `sparring grade`: kept grades or new ones; print_grades.py has its tables
trial_rows.py    the rows that a checker is tried on
trial.py         `sparring check-checker`: which wrong replies it passes, and a verdict; print_trial.py has its tables
examples.py      replies with their grades, as both print them

Nothing is imported here: check-checker needs no torch.
"""
