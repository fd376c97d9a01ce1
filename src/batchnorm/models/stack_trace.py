"""The line of a user's own code in the stack trace that an exporter left in a file."""

from __future__ import annotations

import re

__all__ = ["innermost_line"]

FRAME = re.compile(r'File "([^"\n]*)", line (\d+), in ([^\n]*)(?:\n[ \t]+([^\n]*))?')
FRAMEWORK = re.compile(r"[/\\](site|dist)-packages[/\\]torch[/\\]")
MOST_TRACE = 1 << 16
MOST_LINE = 200


def innermost_line(trace: str) -> str | None:
    """``"net.py:12 in forward: x = self.bn(x)"``: the last frame that is not the framework's; None where there is none.

    >>> innermost_line('File "net.py", line 12, in forward')
    'net.py:12 in forward'
    """
    frames = FRAME.findall(trace[-MOST_TRACE:])
    own = [frame for frame in frames if not FRAMEWORK.search(frame[0]) and not frame[0].startswith("<")]
    if not own:
        return None
    file, line, function, code = own[-1]
    text = f"{file}:{line} in {function.strip()}" + (f": {code.strip()}" if code.strip() else "")
    return text if len(text) <= MOST_LINE else text[: MOST_LINE - 3] + "..."
