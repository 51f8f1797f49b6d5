"""The `graft` command.

Exit codes: 0 done; 1 refused or failed, the message says what to change; 2 the command line is wrong;
3 no service could be reached; 130 interrupted.
"""

import sys

REFUSED = 1
UNREACHABLE = 3
INTERRUPTED = 130


def main() -> None:
    """Run the command line; an expected error is one line on stderr."""
    from graft.cli.app import app
    from graft.errors import GraftError, NoService, Unreachable

    try:
        app(prog_name="graft")
    except GraftError as error:
        sys.stderr.write(f"graft: {' '.join(str(error).split())}\n")
        sys.exit(UNREACHABLE if isinstance(error, NoService | Unreachable) else REFUSED)
    except BrokenPipeError:  # `graft jobs | head`
        sys.stderr.close()
        sys.exit(REFUSED)
    except OSError as error:
        if error.filename is None:  # not about a file that the user named: a bug
            raise
        sys.stderr.write(f"graft: {error.filename}: {error.strerror}\n")
        sys.exit(REFUSED)
