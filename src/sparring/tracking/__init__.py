"""Metrics and scores to the trackers that people already use, through Accelerate.

points.py    what is sent: read from the run directory, so that no rank and no stage knows of trackers
trackers.py  opening tensorboard, trackio, wandb and mlflow so that a run resumes in place
sending.py   the thread that sends, and what it remembers
"""
