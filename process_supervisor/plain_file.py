"""Read small files that others may have put there: without waiting, and within a bound."""

import errno
import os
import stat
from pathlib import Path


def read_plain(path: Path, bytes_max: int) -> bytes:
    """Return the content of a plain file. Links are followed. Blocking, but opening a FIFO does not hang.

    Raises OSError, also for anything that is no plain file, and for more than `bytes_max` bytes.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "it is not a plain file", str(path))
        data = os.pread(fd, bytes_max + 1, 0)
    finally:
        os.close(fd)
    if len(data) > bytes_max:
        raise OSError(errno.EFBIG, f"it has more than {bytes_max} bytes", str(path))
    return data
