"""The settings of the three stages, as dataclasses that refuse what they do not understand.

Names and defaults are TRL's and transformers' wherever these have the setting; what only this
library has is said in its docstring. The string below a field is its documentation, and the help of
the command line. How they are read, and what is refused, is in `settings.py`.
"""

from fastmpi.config.policy_rollout import PolicyRolloutConfig
from fastmpi.config.resume import FREE_ON_RESUME
from fastmpi.config.supervised import CPTConfig, SFTConfig
from fastmpi.config.training import TrainingConfig

__all__ = ["FREE_ON_RESUME", "CPTConfig", "PolicyRolloutConfig", "SFTConfig", "TrainingConfig"]
