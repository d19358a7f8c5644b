import hashlib
import os

import pytest
import torch

from fedlightning.datasets._files import prepared, require_file, stamp
from fedlightning.errors import ConfigurationError

CONTENT = b"twelve bytes"


@pytest.fixture
def path(tmp_path):
    (tmp_path / "raw.bin").write_bytes(CONTENT)
    return tmp_path / "raw.bin"


# -- a file that is needed ----------------------------------------------------------------------------------------------
def test_a_whole_file_is_returned(path):
    hashes = {name: hashlib.new(name, CONTENT).hexdigest().upper() for name in ("sha256", "md5")}
    assert require_file(path, what="It", source="there", sizes=(3, 12), **hashes) == path
    assert require_file(path, what="It", source="there") == path


def test_an_absent_file_is_named_with_its_source_and_its_place(tmp_path):
    with pytest.raises(ConfigurationError) as error:
        require_file(tmp_path / "sub" / "x.csv", what="The tweets", source="somewhere.org")
    for part in ("The tweets must lie in", str(tmp_path / "sub" / "x.csv"), "comes from somewhere.org", "--data-dir"):
        assert part in str(error.value)
    with pytest.raises(ConfigurationError, match="no such file"):
        require_file(tmp_path, what="A folder", source="x")


@pytest.mark.parametrize(
    ("content", "sizes", "message"),
    [
        (CONTENT[:7], (12,), r"It must have 12 bytes, but .* has 7: it is cut short; it comes from there"),
        (CONTENT[:7], (5, 12), "5 or 12 bytes.* has 7: it is another file"),
        (CONTENT, (1000, 2000), "1,000 or 2,000 bytes"),
        (b"", None, "more than 0 bytes, but .* has 0: it is cut short"),
    ],
)
def test_another_size_is_said(path, content, sizes, message):
    path.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        require_file(path, what="It", source="there", sizes=sizes)


@pytest.mark.parametrize("name", ["sha256", "md5"])
def test_another_hash_is_said(path, name):
    wanted = hashlib.new(name, CONTENT).hexdigest()
    path.write_bytes(CONTENT[::-1])
    found = hashlib.new(name, CONTENT[::-1]).hexdigest()
    with pytest.raises(ConfigurationError, match=f"the {name} {wanted}, but .* has {found}: it is damaged"):
        require_file(path, what="It", source="there", **{name: wanted})


def test_a_stamp_knows_names_sizes_and_times_but_no_order(tmp_path):
    one, other = tmp_path / "one", tmp_path / "other"
    one.write_bytes(b"1"), other.write_bytes(b"2")
    first = stamp([one, other])
    assert first == stamp([other, one])
    assert first != stamp([one])
    os.utime(one, ns=(1, 2))
    assert first != stamp([one, other])
    second = stamp([one, other])
    one.write_bytes(b"11")
    os.utime(one, ns=(1, 2))
    assert second != stamp([one, other])


# -- what is prepared ---------------------------------------------------------------------------------------------------
TENSORS = {
    "bytes": torch.arange(200, dtype=torch.uint8).view(10, 20).T,
    "floats": torch.tensor([0.1, torch.inf]),
    "flags": torch.tensor([True, False]),
    "scalar": torch.tensor(3),
    "empty": torch.empty(0, 4),
}


class Build:
    """Counts how often it is asked."""

    def __init__(self):
        self.calls = 0

    def __call__(self, progress):
        self.calls += 1
        assert list(progress.track([3, 1, 2], "counting")) == [3, 1, 2]
        return TENSORS


def files(folder):
    return sorted(path.name for path in (folder / "prepared").iterdir())


def check(found):
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype is tensor.dtype
        assert torch.equal(found[name], tensor)


def test_what_is_prepared_is_made_once_for_each_key_and_it_is_said_where(tmp_path, capsys, caplog):
    build = Build()
    caplog.set_level("INFO", "lightning.pytorch")
    for _ in range(2):
        check(prepared(tmp_path, "thing", {"seed": 1, "size": [2, 3]}, build))
    check(prepared(tmp_path, "thing", {"size": [2, 3], "seed": 1}, build))
    assert build.calls == 1
    assert "counting: 3, once\n" in capsys.readouterr().err
    prepared(tmp_path, "thing", {"seed": 2, "size": [2, 3]}, build)
    prepared(tmp_path, "other", {"seed": 1, "size": [2, 3]}, build)
    assert build.calls == 3
    names = files(tmp_path)
    said = [line for line in caplog.text.splitlines() if "What was prepared is kept in " in line]
    assert [next(name for name in names if f"{tmp_path / 'prepared' / name}, 0.0 MiB." in line) for line in said]
    assert len(said) == 3
    assert [name.split("-")[0] for name in names] == ["other", "thing", "thing"]
    assert all(name.endswith(".pt") for name in names)


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(bytes(range(20, 40)))] ^= 1
    path.write_bytes(content)


def strange(path):
    torch.save({"tensors": {"bytes": Build()}, "checksums": {}}, path)


def other(path):
    torch.save([1, 2], path)


@pytest.mark.parametrize("damage", [cut, flip, strange, other, lambda path: path.write_bytes(b"")])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    contiguous = {**TENSORS, "bytes": TENSORS["bytes"].T.contiguous()}
    prepared(tmp_path, "thing", {}, lambda _: contiguous)
    (name,) = files(tmp_path)
    damage(tmp_path / "prepared" / name)
    build = Build()
    with pytest.warns(UserWarning, match=rf"{name} is damaged \(.*\); it is made again") as warned:
        check(prepared(tmp_path, "thing", {}, build))
    assert (build.calls, len(warned), files(tmp_path)) == (1, 1, [name])
    check(prepared(tmp_path, "thing", {}, build))
    assert build.calls == 1


def test_where_nothing_can_be_written_nothing_is_kept(tmp_path):
    (tmp_path / "prepared").write_text("a file in the folder's place")
    build = Build()
    for _ in range(2):
        with pytest.warns(UserWarning, match="cannot be written .* thing is prepared in every run"):
            check(prepared(tmp_path, "thing", {}, build))
    assert build.calls == 2


def test_a_write_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def full(content, file):
        file.write(b"half")
        raise RuntimeError("no space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(UserWarning, match="no space left"):
        check(prepared(tmp_path, "thing", {}, Build()))
    assert files(tmp_path) == []


def test_what_cannot_be_built_leaves_no_file(tmp_path):
    def build(progress):
        raise ConfigurationError("an image is damaged")

    with pytest.raises(ConfigurationError, match="an image is damaged"):
        prepared(tmp_path, "thing", {}, build)
    assert list(tmp_path.iterdir()) == []
