"""The ops in plain torch or numpy: readable, shipped, and the judge of every fast path."""
