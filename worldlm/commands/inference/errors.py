"""Error lines for what is wrong with the files of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from worldlm.runs.folder import CONFIG
from worldlm.runs.results import RESULTS
from worldlm.topology.errors import UserError, reason


@contextmanager
def file_errors() -> Iterator[None]:
    """Turn errors of files and settings into UserError.

    Raises:
        UserError: One line for each mistake.
    """
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(str(error).splitlines()) from error
    except OSError as error:
        message = f"{error.strerror}: {error.filename}" if error.filename else str(error)
        raise UserError(message.splitlines()) from error
    except (LookupError, TypeError, AttributeError) as error:
        if os.environ.get("WORLDLM_DEBUG"):
            raise
        message = f"a file of the run, {RESULTS} or {CONFIG}, is not as worldlm writes it: {reason(error)}"
        raise UserError([f"{message} (WORLDLM_DEBUG=1 shows where)"]) from error
