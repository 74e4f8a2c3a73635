"""The stages of a game: the inputs of each (its fingerprint) and the work that computes it.

context.py        shared by all stages: recipe, run directory, base model, chat format, rows
run_stage.py      a stage computed and committed, here or by a launcher's ranks, and its fingerprint from the arguments of its work
check.py          checks before any stage
sft.py            the start of the game, and how every stage trains and writes a model
generate.py       the opponent's replies, the duels built from them, and whether there is anything to learn from
score.py          log-probs of the duels
train.py          the player
results.py        the evaluation of a player: measurements, scores, benchmarks
"""
