from jobs.serve.watching import Watched
from pipeline.errors import ConfigError
from pipeline.storage import Folder


def test_a_value_is_made_anew_when_its_files_change_and_only_then(tmp_path):
    folder = Folder.at(tmp_path)
    made = []

    def make() -> bytes:
        made.append(folder.read("a") if folder.size("a") is not None else b"")
        return made[-1]

    watched = Watched([(folder, "a"), (folder, "b")], make, 0.0)
    assert [watched.get(), watched.get()] == [b"", b""]
    folder.publish("a", b"1")
    assert [watched.get(), watched.get()] == [b"1", b"1"]
    folder.publish("a", b"2")  # as long as before
    assert watched.get() == b"2"
    folder.remove_file("a")
    assert watched.get() == b""
    folder.publish("b", b"x")
    assert watched.get() == b""
    assert made == [b"", b"1", b"2", b"", b""]


def test_what_cannot_be_read_leaves_what_was_there_and_is_tried_again(tmp_path, caplog):
    folder = Folder.at(tmp_path)
    folder.publish("a", b"1")

    def make() -> bytes:
        content = folder.read("a")
        if content == b"bad":
            raise ConfigError(f"{folder}/a: is bad")
        return content

    watched = Watched([(folder, "a")], make, 0.0)
    folder.publish("a", b"bad")
    assert watched.get() == b"1"
    assert "a: is bad" in caplog.text
    folder.publish("a", b"2")
    assert watched.get() == b"2"


def test_files_that_come_with_a_value_are_looked_at_from_then_on(tmp_path):
    folder = Folder.at(tmp_path)
    folder.publish_json("list", ["a"])

    def make() -> list[str]:
        return folder.read_json("list")

    def files(names: list[str]) -> list[tuple[Folder, str]]:
        return [(folder, "list"), *((folder, name) for name in names)]

    made = []
    watched = Watched(files(["a"]), lambda: made.append(make()) or made[-1], 3600.0, files)
    folder.publish_json("list", ["a", "b"])
    assert watched.get() == ["a"]
    assert watched.get(now=True) == ["a", "b"]
    made.clear()
    folder.publish("b", b"x")
    watched.get(now=True)
    watched.get(now=True)
    assert made == [["a", "b"]]


def test_files_are_not_looked_at_for_every_use(tmp_path):
    folder = Folder.at(tmp_path)
    watched = Watched([(folder, "a")], lambda: folder.size("a"), 3600.0)
    folder.publish("a", b"1")
    assert watched.get() is None
