"""Responses: engines behind one protocol, sampling, and PolicyRollout's mixed groups."""
