"""GTAPolicy: which version of which tool a user may call, as rules, their text and their data.

`policy.gta_policy()` is the paper's (arXiv 2510.09474), `data.generate` makes its rows.
"""
