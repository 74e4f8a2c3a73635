"""What a recipe will cost, before anything is loaded: `sparring plan`.

command.py     from a recipe to the printed plan
hardware.py    devices: peak rate, bandwidth, memory, and where the numbers are from
shape.py       a model's sizes, from its config alone
known_shapes.py  the configs of some public models
lengths.py     how many rows and tokens there are: measured, given or assumed
contests.py    the same of prompts that nobody has answered; how many replies to a prompt are trained on where the target moves
parallel.py    how stages spread over devices
work.py        what every stage computes: tokens, floating-point operations, decoding steps
memory.py      what every stage holds on a device
hours.py       how long that takes, by stated shares of the peak
estimate.py    the stages of a game put together: the plan
advice.py      which changes of the recipe would make it fit
published.py   the cost of the published code, to check the numbers against the paper's
tables.py      the plan for people; as_json.py for programs
modes.py       the table of docs/memory.md, which `python -m sparring.planning` prints
"""
