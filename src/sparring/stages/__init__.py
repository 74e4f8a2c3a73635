"""The stages of a game: what each is made from (its fingerprint) and the work that makes it.

context.py         what all of them stand on: recipe, run directory, base model, chat format, rows
making.py         a stage begun, computed and committed: by this process, by a launcher's ranks, or by this process as one of them
inputs.py         what of a recipe the results of several stages depend on
check.py          what can be known before any of them
sft.py            the start of the game
generate.py       the opponent's replies, and the duels that they make
score.py          log-probs of the duels
train.py          the player; fitting.py trains and writes any model
results.py        what a player is worth: measurements, scores, benchmarks
"""
