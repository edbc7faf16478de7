"""Keys are read strictly, known again, and never told."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from smallm.errors import SmallmError
from smallm.serving.keys import (
    SHORTEST,
    VARIABLE,
    Keys,
    check_address,
    given_keys,
    is_loopback,
    keys_of,
)

VISIBLE = string.ascii_letters + string.digits + string.punctuation
KEY = st.text(VISIBLE, min_size=SHORTEST, max_size=SHORTEST + 8).filter(lambda key: key[0] != "#")
BLANK = st.one_of(
    st.text(" \t\r", max_size=5), st.text(max_size=20).map(lambda text: " # " + text)
).map(lambda line: "".join(line.splitlines()))
FIRST, SECOND = "first-key-of-some-length", "second-key-of-some-length"


@pytest.fixture
def key_file(tmp_path):
    file = tmp_path / "the keys"

    def write(content, mode=0o600):
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        file.chmod(mode)
        return file

    return write


@given(
    st.lists(st.one_of(KEY, BLANK), max_size=6), st.lists(KEY, min_size=1, max_size=4, unique=True)
)
def test_every_key_of_a_file_is_known_and_no_comment_counts(lines, more):
    lines = [*lines, *more]
    keys = keys_of((f" {line}\t".encode() for line in lines), place="file, line")
    distinct = list(dict.fromkeys(line for line in lines if line.strip()[:1] not in ("", "#")))
    assert len(keys) == len(distinct)
    for number, key in enumerate(distinct, start=1):
        assert keys.owner(f"Bearer {key}") == f"key-{number}"


@given(st.lists(KEY, unique=True, max_size=4), st.text())
def test_only_the_whole_key_is_known(several, other):
    keys = Keys(several)
    assert keys.owner(other) is None or other.lower().startswith("bearer ")
    assert (keys.owner(f"Bearer {other}") is not None) == (other.strip(" ") in several)
    for key in several:
        for wrong in (key[:-1], key + "x", key.swapcase() + "_", f'"{key}"'):
            assert (keys.owner(f"Bearer {wrong}") is not None) == (wrong in several)


@given(st.lists(KEY, min_size=1, max_size=3), st.binary(min_size=1, max_size=30))
def test_errors_number_the_line_and_show_no_key(good, bad):
    lines = [key.encode() for key in good] + [bad.replace(b"#", b"") + b"\xe9"]
    with pytest.raises(SmallmError) as told:
        keys_of(lines, place="file, line")
    assert str(told.value) == (
        f"file, line {len(lines)}: a key is of ASCII characters without white space"
    )


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        FIRST,
        "Bearer",
        "Bearer ",
        f"Basic {FIRST}",
        f"Bearer{FIRST}",
        f"Bearer {FIRST} x",
        f"Bearer {FIRST}, Bearer {FIRST}",
        "Bearer \xff\xfe",
        "Bearer \ud800",
        f"\xa0Bearer {FIRST}",
    ],
)
def test_what_is_no_bearer_of_a_key_has_no_owner(header):
    assert Keys([FIRST]).owner(header) is None


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "Bearer "])
def test_the_scheme_may_be_written_in_any_case(scheme):
    assert Keys([FIRST, SECOND]).owner(f"{scheme} {SECOND}") == "key-2"


def test_all_digests_are_compared(monkeypatch):
    compared = []
    monkeypatch.setattr(
        "smallm.serving.keys.hmac.compare_digest", lambda one, two: bool(compared.append(one))
    )
    Keys([FIRST, SECOND]).owner(f"Bearer {FIRST}")
    assert len(compared) == 2


def test_a_key_appears_nowhere():
    keys = Keys([FIRST])
    assert repr(keys) == "<1 keys>"
    assert FIRST not in f"{keys} {vars(keys)}"


def test_a_file_with_all_kinds_of_lines(key_file):
    keys = given_keys(key_file(f"# of Ada\r\n{FIRST}\r\n\r\n  # of Bob\n {SECOND} \n{FIRST}"))
    assert len(keys) == 2
    assert keys.owner(f"Bearer {SECOND}") == "key-2"


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("", "the keys: holds no key"),
        ("# nothing\n\n", "the keys: holds no key"),
        (f"{FIRST}\n# x\nshort", "the keys, line 3: a key has at least 16 characters"),
        (f"{FIRST} of Ada", "the keys, line 1: a key is of ASCII characters"),
        (f"\n{FIRST}é", "the keys, line 2: a key is of ASCII characters"),
        (b"\n\n\xff\xfe" * 9, "the keys, line 3: a key is of ASCII characters"),
    ],
)
def test_wrong_lines_are_named_and_not_shown(key_file, content, says):
    with pytest.raises(SmallmError) as told:
        given_keys(key_file(content))
    assert says in str(told.value)
    assert FIRST not in str(told.value)
    assert "short" not in str(told.value)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o644])
def test_a_file_that_others_can_read_is_refused(key_file, mode):
    file = key_file(FIRST, mode)
    with pytest.raises(SmallmError) as told:
        given_keys(file)
    assert f"run `chmod 600 '{file}'`" in str(told.value)


def test_a_missing_file_or_a_folder_is_named(tmp_path):
    with pytest.raises(SmallmError, match="none: cannot be read: No such file"):
        given_keys(tmp_path / "none")
    with pytest.raises(SmallmError, match="cannot be read: Is a directory"):
        given_keys(tmp_path)


def test_keys_of_the_environment(monkeypatch, key_file):
    monkeypatch.delenv(VARIABLE, raising=False)
    assert given_keys(None) is None
    monkeypatch.setenv(VARIABLE, f"{FIRST}, {SECOND},")
    assert given_keys(None).owner(f"Bearer {SECOND}") == "key-2"
    assert given_keys(key_file("another-key-of-some-length")).owner(f"Bearer {FIRST}") is None
    monkeypatch.setenv(VARIABLE, f"{FIRST},short")
    with pytest.raises(SmallmError, match=f"^{VARIABLE}, key 2: a key has at least 16"):
        given_keys(None)
    monkeypatch.setenv(VARIABLE, "")  # more likely a mistake than a wish for none
    with pytest.raises(SmallmError, match=f"^{VARIABLE}: holds no key"):
        given_keys(None)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.9.1", "::1", "[::1]", "localhost"])
def test_loopback_needs_no_keys_but_the_fast_front_does(host):
    assert is_loopback(host)
    check_address(host, keys=None, fast_front=False)
    with pytest.raises(SmallmError, match=f"all addresses: give a file of keys, or set {VARIABLE}"):
        check_address(host, keys=None, fast_front=True)
    check_address(host, keys=Keys([FIRST]), fast_front=True)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.7", "", "example.org", "localhost.com"])
def test_other_addresses_need_keys(host):
    assert not is_loopback(host)
    with pytest.raises(SmallmError, match="can be reached by others: give a file of keys") as told:
        check_address(host, keys=None, fast_front=False)
    assert "\n" not in str(told.value)
    check_address(host, keys=Keys([FIRST]), fast_front=False)
