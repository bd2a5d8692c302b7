"""The three stages, one file each: `cpt`, `sft`, `rl`; `loop` is what they have in common."""
