"""Host lists: whatever is written in short is written out again, in order."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chronolog_hpc.hostlist import MAX_HOSTS, expand


@pytest.mark.parametrize(
    ("text", "hosts"),
    [
        ("", []),
        ("login", ["login"]),
        ("h[1-2]", ["h1", "h2"]),
        ("n[1-3,07-09],gpu-[a,b]", ["n1", "n2", "n3", "n07", "n08", "n09", "gpu-a", "gpu-b"]),
        ("n[8-11]", ["n8", "n9", "n10", "n11"]),
        ("n[08-11]", ["n08", "n09", "n10", "n11"]),
        ("n[098-101]", ["n098", "n099", "n100", "n101"]),
        ("n[0-0],n[000]", ["n0", "n000"]),
        ("r[1-2]n[01-02]-ib", ["r1n01-ib", "r1n02-ib", "r2n01-ib", "r2n02-ib"]),
        ("[1-2]", ["1", "2"]),
        ("a,a", ["a", "a"]),
    ],
)
def test_what_lists_stand_for(text: str, hosts: list[str]) -> None:
    assert expand(text) == hosts


@pytest.mark.parametrize(
    "text", ["n[", "n]", "n[]", "a,,b", ",a", "a,", "n[3-1]", "n[1-2", "n[a-c]", "n[1-]", "n[[1]]", "a b", "n[1,,2]", "n[²-3]"]
)  # fmt: skip
def test_what_is_no_list(text: str) -> None:
    with pytest.raises(ValueError, match=r"is no (list|range) of hosts"):
        expand(text)


@pytest.mark.parametrize(
    "text", ["n[0-1048576]", "n[1-999999999999]", "r[1-9999]n[1-9999]", f"a,n[1-{MAX_HOSTS}]"]
)
def test_a_list_without_bounds_does_not_fill_the_memory(text: str) -> None:
    with pytest.raises(ValueError, match="more than 1048576 hosts"):
        expand(text)


# -- the other way, independently: a compressor as Slurm has one ---------------------------------------------


def compress(hosts: list[str], stretch: int) -> str:
    """Write consecutive numbers of one prefix and width as ranges, at most `stretch` long."""
    groups: list[tuple[str, list[str]]] = []
    for host in hosts:
        found = re.fullmatch(r"(.*?)([0-9]+)", host)
        prefix, digits = (found[1], found[2]) if found else (host, "")
        if digits and groups and groups[-1][0] == prefix and groups[-1][1]:
            groups[-1][1].append(digits)
        else:
            groups.append((prefix, [digits] if digits else []))
    return ",".join(
        f"{prefix}[{_ranges(numbers, stretch)}]" if numbers else prefix for prefix, numbers in groups
    )


def _ranges(numbers: list[str], stretch: int) -> str:
    runs: list[list[str]] = []
    for digits in numbers:
        width = len(runs[-1][0]) if runs and runs[-1][0].startswith("0") else 0
        follows = bool(runs) and digits == str(int(runs[-1][-1]) + 1).zfill(width) and len(runs[-1]) < stretch
        if follows:
            runs[-1].append(digits)
        else:
            runs.append([digits])
    return ",".join(run[0] if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


HOSTS = st.lists(
    st.tuples(
        st.sampled_from(["n", "gpu-", "rack1-n", "n0x", "node.", ""]),
        st.integers(0, 120),
        st.integers(0, 4),
        st.integers(1, 12),
    ).flatmap(
        lambda run: st.just([f"{run[0]}{number:0{run[2]}d}" for number in range(run[1], run[1] + run[3])])
    )
    | st.sampled_from([["login"], ["a-b"], ["x"]]),
    max_size=8,
).map(lambda runs: [host for run in runs for host in run])


@given(HOSTS, st.integers(1, 30))
def test_what_was_compressed_comes_back(hosts: list[str], stretch: int) -> None:
    assert expand(compress(hosts, stretch)) == hosts


@given(st.text(alphabet="n1a0-,[] ", max_size=14))
def test_any_text_is_a_list_or_is_refused(text: str) -> None:
    try:
        hosts = expand(text)
    except ValueError as error:
        assert "\n" not in str(error)
    else:
        assert all(hosts)
        assert not any(set(host) & set(" ,[]") for host in hosts)
