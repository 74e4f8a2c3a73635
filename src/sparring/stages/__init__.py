"""The stages of a game: the inputs of each (its fingerprint) and the work that computes it.

context.py        shared by all stages: recipe, run directory, base model, chat format, rows
making.py         a stage started, computed and committed: by this process, by a launcher's ranks, or by this process as one of them
inputs.py         the parts of a recipe that the results of several stages depend on
check.py          checks before any stage
sft.py            the start of the game
generate.py       the opponent's replies, and the duels built from them
score.py          log-probs of the duels
train.py          the player; fitting.py trains and writes any model
results.py        the evaluation of a player: measurements, scores, benchmarks
"""
