"""What a process may take, as control groups of both versions say it."""

from pathlib import Path

from hubplugin import memory


def group(folder: Path, limit: str, used: int, files: int, second: bool) -> None:
    folder.mkdir(parents=True)
    limit_file, used_file = ("max", "current") if second else ("limit_in_bytes", "usage_in_bytes")
    (folder / f"memory.{limit_file}").write_text(f"{limit}\n")
    (folder / f"memory.{used_file}").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\ninactive_file {files}\nactive_file 1\n")


def test_a_group_of_the_first_version_leaves_its_limit_less_what_is_used_and_no_file(tmp_path):
    group(tmp_path / "memory" / "a" / "b", "1000", 700, 99, second=False)
    own = tmp_path / "own"
    own.write_text("5:cpu:/elsewhere\n4:memory:/a/b\n0::/\n")
    assert memory._left_by_control_groups(tmp_path, own) == [400]


def test_a_group_of_the_second_version_too(tmp_path):
    group(tmp_path / "a", "1000", 700, 0, second=True)
    own = tmp_path / "own"
    own.write_text("0::/a\n")
    assert memory._left_by_control_groups(tmp_path, own) == [301]


def test_no_limit_is_no_number(tmp_path):
    group(tmp_path / "a", "max", 700, 0, second=True)
    own = tmp_path / "own"
    own.write_text("0::/a\n")
    assert memory._left_by_control_groups(tmp_path, own) == []
    assert memory._left_by_control_groups(tmp_path, tmp_path / "missing") == []


def test_what_is_resident_is_part_of_the_peak():
    memory.trim()
    assert 0 < memory.resident() <= memory.peak() * 1.05
    assert memory.available() > 0
