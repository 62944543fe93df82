"""User errors: one clear line and a non-zero exit, never a traceback."""

import functools
import sys


class UserError(Exception):
    """A mistake of the user's. The message names the file, the key and the mend, in one line."""


def reports_user_errors(main):
    """Decorates an entry point: a UserError or a full disk becomes one line on stderr and exit 2."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs):
        try:
            return main(*args, **kwargs)
        except UserError as error:
            sys.exit(_say(f"error: {error}"))
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            sys.exit(_say(f"error: {error.strerror or error}{where}; what was finished is kept"))
        except KeyboardInterrupt:
            sys.exit(_say("interrupted; run the same command again to go on", 130))

    return wrapped


def _say(line, status=2):
    print(line, file=sys.stderr, flush=True)
    return status
