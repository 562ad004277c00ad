"""What the commands of each kind are added to."""

from __future__ import annotations

import argparse

Commands = argparse._SubParsersAction  # argparse has no public name for it
