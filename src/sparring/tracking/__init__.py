"""Sends metrics and scores to experiment trackers, through Accelerate.

points.py    the points to send, read from the run directory, so that ranks and stages need not know about trackers
trackers.py  opening tensorboard, trackio, wandb and mlflow so that a run resumes in place
sending.py   the thread that sends, and trackers.json, which records what was sent
"""
