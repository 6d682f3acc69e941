"""Rewards: graders by name, users' functions, and the stage that asks them.

Nothing is imported here: a grading process imports this package and should start fast.
"""
