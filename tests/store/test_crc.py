"""The numbers are zlib's, whichever library made them."""

import subprocess
import sys
import zlib

from hypothesis import given
from hypothesis import strategies as st

from py_chronolog_client.store.crc import CRC_LIBRARY, crc32
from tests.support.processes import child_environment


@given(st.binary(max_size=20_000), st.integers(0, 2**32 - 1), st.integers(0, 64))
def test_it_is_zlibs(data: bytes, start: int, skip: int) -> None:
    assert crc32(data) == zlib.crc32(data)
    for form in (memoryview(data)[skip:], bytearray(data)[skip:]):
        assert crc32(form, start) == zlib.crc32(data[skip:], start)


def test_columns_of_words_count_as_their_bytes() -> None:
    words = memoryview(bytes(range(256))).cast("Q")
    assert crc32(words[3:]) == zlib.crc32(words.tobytes()[24:])


def test_without_the_extra_it_is_zlibs_own() -> None:
    program = (
        "import sys, zlib; sys.modules['isal'] = None\n"
        "from py_chronolog_client.store.crc import CRC_LIBRARY, crc32\n"
        "assert crc32 is zlib.crc32; print(CRC_LIBRARY)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, env=child_environment()
    )
    assert done.stdout.strip() == f"zlib {zlib.ZLIB_RUNTIME_VERSION}"
    assert CRC_LIBRARY in {"isal", done.stdout.strip()}
