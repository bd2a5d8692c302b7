"""Scenes and pictures, prompts, samples and data sets.

Import the submodule that holds what you need.
"""
