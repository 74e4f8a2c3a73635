"""Checkers: whether a reply's answer is right.

grades.py     the input of a checker, the answer that a pattern finds in a text, and grades
builtin.py    exact, number and choice: answers read from texts and compared
math.py       answers compared by math-verify, in the processes of pool.py
pool.py       processes with limits of time and memory; worker.py runs in them
make.py       settings or a recipe to checker: one of these, a user's function in the processes of pool.py, or random
probe.py      which wrong replies a checker passes

Nothing is imported here.
"""
