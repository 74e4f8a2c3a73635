"""The stages of a game: the inputs of each (its fingerprint) and the work that computes it.

context.py    shared by all stages: recipe, run directory, base model, chat format, rows
run_stage.py  computes and commits a stage, in this process or on a launcher's ranks; its fingerprint is made from its arguments
check.py      checks before any stage
generate.py   the opponent's replies, the duels built from them, and whether there is anything to learn from
grade.py      grades of the opponent's replies, for verified and majority targets
regrade.py    a changed checker: all former grades are replaced, or none
train.py      how every stage trains and writes a model; the start of the game; log-probs of the duels, and the player
results.py    the evaluation of a player: measurements, scores, benchmarks
"""
