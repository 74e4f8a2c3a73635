"""Checkers: whether a reply's answer is right.

grades.py     the input of a checker, the answer that a pattern finds in a text, and grades; numbers.py reads numbers
builtin.py    exact, number and choice: answers read from texts and compared
math.py       answers compared by math-verify, in the processes of pool.py
own.py        a user's function, in the processes of pool.py
shuffled.py   random: another checker's scores, shuffled
pool.py       processes with limits of time and memory; worker.py runs in them
make.py       settings to checker
probe.py      which wrong replies a checker passes

Nothing is imported here.
"""
