"""Reads the configurations of FederatedX, with its spellings, and writes ours.

python -m fedlightning.contrib.federatedx experiments/CIFAR100/A0d01C100/config.py --command ".FedADAM -fedopt --method adam"

What each key became, or why it was left out, stands in the YAML as a comment. Nothing of a Python file is run.
"""

from fedlightning.contrib.federatedx.command import TheirCommand, parse_command
from fedlightning.contrib.federatedx.files import read
from fedlightning.contrib.federatedx.translate import Translation, translate

__all__ = ["TheirCommand", "Translation", "parse_command", "read", "translate"]
