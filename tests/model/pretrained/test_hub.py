"""Where models are, by their names."""

from pathlib import Path

import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from model.pretrained import hub
from model.pretrained.hub import local_folder, text_folder
from pipeline.errors import ConfigError


def test_names_of_the_hub_are_fetched_and_paths_are_not(tmp_path, monkeypatch):
    asked = []

    def fetch(name: str, allow_patterns: list[str]) -> str:
        asked.append(name)
        if name == "no/where":
            raise LocalEntryNotFoundError("not here, and no network")
        return str(tmp_path)

    monkeypatch.setattr(hub, "snapshot_download", fetch)
    assert local_folder(str(tmp_path)) == tmp_path
    assert asked == []
    assert local_folder("Salesforce/blip2-opt-2.7b") == tmp_path
    assert asked == ["Salesforce/blip2-opt-2.7b"]
    for path in ("blip2", "./a/b", "/a/b", "~/b", "a/b/c"):
        with pytest.raises(ConfigError, match=f"{path}: no such folder$"):
            local_folder(path)
    with pytest.raises(ConfigError, match=r"no/where: no such folder, and cannot be fetched \(not"):
        local_folder("no/where")
    assert len(asked) == 2


def test_where_text_models_are():
    assert text_folder("hf:bert-base-uncased") == "bert-base-uncased"
    assert text_folder("hf:/models/bert") == "/models/bert"
    assert text_folder("hf:~/bert") == str(Path.home() / "bert")
