"""Becomes the program it is given, after tying its life to that of whoever started it.

Run by path, by any interpreter. Linux kills it when the thread that started it ends, so a run that
is killed leaves no server behind.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if __name__ == "__main__":
    parent = int(sys.argv[1])
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before it was watched
            sys.exit(1)
    os.execvp(sys.argv[2], sys.argv[2:])
