"""The expected cost of a recipe, before anything is loaded: `sparring plan`.

command.py     from a recipe to the plan as tables and as JSON, and a change that would make it fit
hardware.py    devices, and how stages are distributed over them
shape.py       a model's sizes, from its config alone (given_shape.py: of a public model, or from its number of parameters)
lengths.py     how many rows and tokens there are: measured, given or assumed
work.py        the work of every stage (tokens, floating-point operations, decoding steps), and its time
memory.py      the memory of every stage on a device
estimate.py    the stages of a game put together: the plan
"""
