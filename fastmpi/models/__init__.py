"""Transformers models seen as forest -> hidden states, and the tiny offline models."""
