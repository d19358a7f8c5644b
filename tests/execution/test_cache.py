"""What is kept between runs: whole or made again, one line each, and not in a folder that others may write to."""

import io
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from numpy.random import bit_generator

from fedlightning.errors import ConfigurationError
from fedlightning.execution.runners.compiled import build as packages
from fedlightning.execution.runners.compiled import native as walks
from fedlightning.execution.runners.compiled import runner as compiled
from fedlightning.execution.runners.compiled.cache import cache_folder, kept

CONTENT = bytes(range(256)) * 3


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a cache that nobody has used."""
    monkeypatch.setenv("FEDLIGHTNING_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "compiled"


class Makes:
    """Writes the content, and counts how often."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content, self.times = content, 0

    def __call__(self, path: Path) -> None:
        self.times += 1
        path.write_bytes(self.content)
        path.with_name("else").write_text("what a compiler leaves")


def test_a_file_is_made_once_and_found_again(folder: Path, said: Callable[[], list[str]]) -> None:
    make = Makes()
    path = kept("one.so", make)
    assert path == folder / "one.so"
    assert path.read_bytes().startswith(CONTENT)
    assert kept("one.so", make) == path
    assert make.times == 1
    assert os.listdir(folder) == ["one.so"]
    assert not said()


def cut(size: int) -> Callable[[Path], None]:
    return lambda path: os.truncate(path, size)


def flip(bit: int) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[bit // 8 % len(content)] ^= 1 << bit % 8
        path.write_bytes(content)

    return damage


def fill(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def exchange(path: Path) -> None:
    """Whole, but of an older kind without a seal."""
    path.write_bytes(CONTENT)


def append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


@pytest.mark.parametrize(
    "damage",
    [cut(0), cut(1), cut(31), cut(32), cut(100), cut(799), flip(0), flip(3001), flip(8 * 790), fill, exchange, append],
)
def test_a_damaged_file_is_made_again_with_one_line(
    damage: Callable[[Path], None], folder: Path, said: Callable[[], list[str]]
) -> None:
    make = Makes()
    path = kept("one.pt2", make)
    whole = path.read_bytes()
    damage(path)
    assert kept("one.pt2", make).read_bytes() == whole
    assert make.times == 2
    assert said() == [f"{path} is damaged, so it is made again."]
    kept("one.pt2", make)
    assert make.times == 2
    assert not said()


def test_every_bit_is_looked_at(folder: Path) -> None:
    make = Makes(b"\x7fELF and more")
    path = kept("one.so", make)
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        flip(bit)(path)
        assert kept("one.so", make).read_bytes() == whole
        assert make.times == bit + 2


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o702])
@pytest.mark.parametrize("place", ["", "compiled"])
def test_a_folder_that_others_may_write_to_is_passed_over(
    mode: int, place: str, folder: Path, said: Callable[[], list[str]]
) -> None:
    """What was planted there is not looked at, and what is made is this process's own."""
    kept("one.so", Makes(b"planted"))
    (folder.parent / place).chmod(mode)
    make = Makes()
    path = kept("one.so", make)
    assert path.read_bytes().startswith(CONTENT)
    assert folder not in path.parents
    assert path.parent.stat().st_mode & 0o077 == 0
    (line,) = said()
    assert "others may write" in line
    assert "this run compiles for itself alone; let $FEDLIGHTNING_CACHE name a folder of your own" in line
    assert kept("one.so", make) == path
    assert make.times == 1
    assert not said()


@pytest.mark.parametrize("owned", ["folder", "file"])
def test_what_belongs_to_another_user_is_not_trusted(
    owned: str, folder: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = kept("one.so", Makes(b"planted"))
    strange = (folder if owned == "folder" else path).stat().st_ino

    def of_another(usual: Callable[..., os.stat_result]) -> Callable[..., os.stat_result]:
        def look(*arguments: Any, **options: Any) -> os.stat_result:
            found = list(usual(*arguments, **options))
            return os.stat_result([*found[:4], found[4] + (found[1] == strange), *found[5:]])

        return look

    monkeypatch.setattr(Path, "stat", of_another(Path.stat))
    monkeypatch.setattr(os, "fstat", of_another(os.fstat))
    assert kept("one.so", Makes()).read_bytes().startswith(CONTENT)
    assert len(said()) == 1


def a_file(path: Path) -> str:
    path.write_text("")
    return str(path)


@pytest.mark.parametrize("place", [lambda path: "/proc/nowhere", a_file, lambda path: a_file(path) + "/below"])
def test_a_folder_that_cannot_be_made_is_passed_over(
    place: Callable[[Path], str], tmp_path: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FEDLIGHTNING_CACHE", place(tmp_path / "file"))
    make = Makes()
    assert kept("one.so", make) == kept("one.so", make)
    assert make.times == 1
    (line,) = said()
    assert "cannot be made" in line


@pytest.mark.parametrize("obstacle", ["full", "folder"])
def test_a_folder_that_takes_no_file_is_passed_over(
    obstacle: str, folder: Path, said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full; or a folder lies in the file's place."""
    cache_folder()
    if obstacle == "folder":
        (folder / "one.so" / "more").mkdir(parents=True)
    else:
        replace = Path.replace

        def full(path: Path, target: Path) -> Path:
            if target.parent == folder:
                raise OSError(28, "No space left on device")
            return replace(path, target)

        monkeypatch.setattr(Path, "replace", full)
    make = Makes()
    path = kept("one.so", make)
    assert path.read_bytes().startswith(CONTENT)
    assert path.parent != folder
    assert kept("one.so", make) == path
    assert make.times == 1
    assert len([line for line in said() if "cannot be written (" in line]) == 1
    assert not list(folder.glob(".making-*"))


def test_a_user_without_a_home_gets_a_private_folder(
    said: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("FEDLIGHTNING_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", none)
    assert cache_folder() == cache_folder()
    assert len(said()) == 1


def test_a_private_folder_is_removed_at_the_end_of_the_process(tmp_path: Path) -> None:
    program = "from fedlightning.execution.runners.compiled.cache import cache_folder; print(cache_folder())"
    environment = {**os.environ, "FEDLIGHTNING_CACHE": "/proc/nowhere", "TMPDIR": str(tmp_path)}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert Path(told.stdout.strip()).parent == tmp_path
    assert not list(tmp_path.glob("fedlightning-*"))
    assert len(told.stderr.splitlines()) == 1


def test_what_a_killed_run_has_left_is_removed_once_it_is_old(folder: Path) -> None:
    cache_folder()
    old, new = folder / ".making-old", folder / ".making-new"
    for left in (old, new):
        left.write_bytes(CONTENT)
    os.utime(old, (0, 0))
    kept("one.so", Makes())
    assert sorted(os.listdir(folder)) == [".making-new", "one.so"]


def test_what_cannot_be_made_leaves_nothing(folder: Path) -> None:
    def fails(path: Path) -> None:
        path.write_bytes(CONTENT)
        raise KeyError("broken")

    with pytest.raises(KeyError, match="broken"):
        kept("one.so", fails)
    assert not os.listdir(folder)


def test_two_who_make_a_file_at_once_both_have_a_whole_one(folder: Path) -> None:
    """Neither waits for the other; what is written last stays."""
    both, found = threading.Barrier(2, timeout=10), []

    def make(path: Path) -> None:
        path.write_bytes(CONTENT + threading.current_thread().name.encode())
        both.wait()

    def run() -> None:
        found.append(kept("one.so", make))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [folder / "one.so"] * 2
    assert kept("one.so", Makes()).read_bytes().startswith(CONTENT + b"Thread-")
    assert os.listdir(folder) == ["one.so"]


@pytest.mark.skipif(packages.compiler() is None, reason="no C++ compiler")
def test_a_walker_that_is_damaged_is_built_again_and_not_loaded(folder: Path, said: Callable[[], list[str]]) -> None:
    """To load what is left of a library ends the process with a bus error."""
    walks.walker.cache_clear()
    walks.walker()
    (path,) = folder.glob("*.so")
    for damage in (cut(1000), cut(0), flip(8 * 5000)):
        walks.walker.cache_clear()
        damage(path)
        assert walks.walker().fedlightning_walk
        assert said() == [f"{path} is damaged, so it is made again."]
    walks.walker.cache_clear()


@pytest.mark.parametrize("compiler", ["false", "no-such-compiler"])
def test_a_compiler_that_fails_is_said_in_one_line(
    compiler: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is a package, with a library, and no walker to call it."""
    monkeypatch.setattr(walks, "compiler", lambda: compiler)
    walks.walker.cache_clear()
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as file:
        file.write(bit_generator.__file__, "any.so")
    with pytest.raises(ConfigurationError, match=r"^[^\n]*use `runner=.loop.`\.$"):
        compiled.package("any.pt2", Makes(zipped.getvalue()))


def test_a_machine_without_room_for_a_temporary_file_is_said_in_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tempfile.mkdtemp", full)
    with pytest.raises(ConfigurationError, match=r"^[^\n]*No space left on device; use `runner=.loop.`\.$"):
        compiled.package("any.pt2", Makes())
