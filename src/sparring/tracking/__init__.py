"""Sends metrics and scores to experiment trackers, through Accelerate."""
