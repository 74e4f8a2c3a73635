"""Checkers: whether a reply's answer is right.

grades.py     what is graded and what a grade says
answers.py    the answer that a pattern finds in a text; numbers.py reads numbers
builtin.py    exact, number and choice: answers read from texts and compared
math.py       answers compared by math-verify, in the processes of pool.py
own.py        a function of the user's own, in the processes of pool.py
dealt.py      random: another checker's scores, shuffled
pool.py       processes with limits of time and memory; worker.py is what runs in them
make.py       settings to checker
probe.py      what a checker lets through

Nothing is imported here.
"""
