"""What is kept of each image on disk."""

from __future__ import annotations

import subprocess
import sys

import pytest

from qexport.measurement.spool import Spool

FULL = """
import resource
from qexport.measurement.spool import Spool
kept = Spool()
resource.setrlimit(resource.RLIMIT_FSIZE, (10, resource.RLIM_INFINITY))
try:
    {what}
except OSError as error:
    print(type(error).__name__)
"""


def test_values_come_back_in_the_order_they_were_first_kept_in() -> None:
    kept = Spool[list[int]]()
    for name, value in (("b", [1]), ("a", [2, 3]), ("b", [4])):
        kept.add(name, value)
    assert list(kept.items()) == [("b", [4]), ("a", [2, 3])]
    assert ("c" in kept, len(kept)) == (False, 2)
    with pytest.raises(KeyError):
        kept["c"]


@pytest.mark.parametrize(
    ("what", "said"), [("kept.add('a', b'x' * 100)", ""), ("kept.add('a', b'x' * 100); kept['a']", "OSError\n")]
)
@pytest.mark.skipif(sys.platform != "linux", reason="limits the size of files")
def test_on_a_full_disk_it_fails_where_it_is_used_and_nowhere_else(what: str, said: str) -> None:
    """What is too short to be written at once would be when the process ends, behind all that reports errors."""
    ended = subprocess.run([sys.executable, "-c", FULL.format(what=what)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, said, "")
