"""Grades of replies to read: `sparring grade` and `sparring check-checker`. Nothing is sampled, and no run is changed.

batches.py       the stored replies of a run, with their stored grades
outcome.py       statistics of grades: pass rates, disagreements, examples
grade.py         `sparring grade`: stored grades or new ones; print_grades.py has its tables
trial_rows.py    the checker that a command's options name, and the rows that it is tried on
trial.py         `sparring check-checker`: which wrong replies it passes, and a verdict; print_trial.py has its tables

Nothing is imported here: check-checker needs no torch.
"""
