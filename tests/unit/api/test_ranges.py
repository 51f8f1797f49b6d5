import pytest
from hypothesis import given
from hypothesis import strategies as st

from api.ranges import find_range
from domain.errors import Invalid


@given(st.integers(1, 60), st.integers(0, 70), st.integers(0, 70))
def test_a_range_is_a_slice(size: int, first: int, last: int) -> None:
    """`first-last` counts both ends; Python's slice is the independent answer."""
    data = bytes(range(size))
    if first >= size and first <= last:
        with pytest.raises(Invalid):
            find_range(f"bytes={first}-{last}", size)
        return
    found = find_range(f"bytes={first}-{last}", size)
    if first > last:
        assert found is None
    else:
        assert found is not None
        assert data[slice(*found)] == data[first : last + 1]


@given(st.integers(1, 60), st.integers(1, 70))
def test_a_suffix_is_the_end(size: int, n: int) -> None:
    data = bytes(range(size))
    assert data[slice(*(find_range(f"bytes=-{n}", size) or ()))] == data[-n:]


@given(st.integers(1, 60), st.integers(0, 59))
def test_an_open_range_goes_to_the_end(size: int, first: int) -> None:
    if first < size:
        assert find_range(f"bytes={first}-", size) == (first, size)


@pytest.mark.parametrize(
    "header",
    [None, "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=0-1,3-4", "items=0-1", "bytes=1--2", "bytes=٣-٤",
     "bytes=" + ",".join(f"{n}-{n}" for n in range(10_000)), "bytes=0-" + "9" * 50],
)  # fmt: skip
def test_what_is_no_single_range_means_the_whole_file(header: str | None) -> None:
    assert find_range(header, 10) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=10-", 10), ("bytes=10-20", 10), ("bytes=-0", 10), ("bytes=0-", 0)]
)
def test_ranges_outside_the_file(header: str, size: int) -> None:
    with pytest.raises(Invalid) as caught:
        find_range(header, size)
    assert caught.value.facts == {"size_bytes": size}
