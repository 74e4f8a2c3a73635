"""Grades of replies for people to read: `sparring grade` and `sparring check-checker`. Nothing is sampled, and no run is changed.

options.py       the checker that a command's options name
lots.py          the stored replies of a run, with their stored grades
outcome.py       what grades say of them: pass rates, disagreements, examples
grade.py         `sparring grade`: kept grades or new ones; print_grades.py has its tables
trial_rows.py    the rows that a checker is tried on
trial.py         `sparring check-checker`: what it lets through, and whether it behaves; print_trial.py has its tables
shown.py         what both print alike

Nothing is imported here: check-checker needs no torch.
"""
