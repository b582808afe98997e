"""``python -m oracles.leash PARENT COMMAND…`` becomes COMMAND and is killed when the process PARENT dies.

For programs that are started by a library, which cannot be told to do so itself.
"""

from __future__ import annotations

import os
import sys

from discovery.processes import die_with_parent

if __name__ == "__main__":
    die_with_parent(int(sys.argv[1]))
    os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606
