"""User errors: one clear line and a non-zero exit, never a traceback."""

import errno
import functools
import os
import re
import sys

_LOST_PEER = re.compile(r"Connection (closed|reset) by peer|Broken pipe")  # of gloo
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class UserError(Exception):
    """A user's mistake. The message is one line that names the file, the key and the mend."""


def reports_user_errors(main):
    """Decorates an entry point: a UserError or a full disk becomes one line on stderr and exit 2.

    Only the first of several processes prints it.
    """

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            sys.exit(_say(f"error: {error}"))
        except OSError as error:
            mend = (
                "; make room and run again, what was finished is kept"
                if error.errno in _FULL
                else ""
            )
            where = f"{error.filename}: " if error.filename else ""
            sys.exit(_say(f"error: {where}{error.strerror or error}{mend}", always=True))
        except KeyboardInterrupt:
            sys.exit(_say("interrupted; run again to go on", status=130))
        except RuntimeError as error:
            if not _LOST_PEER.search(str(error)):
                raise
            sys.exit(2)  # another process has failed and reports why

    return wrapped


def warn(line):
    """Prints a warning on stderr, once for all processes."""
    _say(f"warning: {line}")


def _say(line, status=2, always=False):
    if always or os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)
    return status
