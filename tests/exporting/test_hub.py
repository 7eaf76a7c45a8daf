"""`push_to_hub` against a local stand-in of the hub's HTTP API, and what the upload never tells."""

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL
from huggingface_hub import HfApi, constants

from ldm_vae.exporting.hub import push_folder
from tests.exporting.hub_standin import REPO, TOKEN, Hub
from tests.tiny import tiny_autoencoder


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub.running() as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # huggingface_hub 0.x reads a commit's address by it
        yield hub


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tiny_autoencoder(widths=(8,)).save_pretrained(tmp_path / "vae")
    (tmp_path / "vae" / "README.md").write_text("---\nlibrary_name: diffusers\n---\n\n# vae\n")
    return tmp_path / "vae"


def test_every_file_arrives_in_a_private_repository(
    hub: Hub, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG)
    url = push_folder(folder, repo_id=REPO, private=True, api=HfApi(endpoint=hub.endpoint, token=TOKEN))
    assert url == f"{hub.endpoint}/{REPO}"
    assert hub.visibilities == ["private"]
    assert hub.files == {path.name: path.read_bytes() for path in folder.iterdir()}
    assert hub.tokens == {f"Bearer {TOKEN}"}
    for name, content in hub.files.items():
        (tmp_path / name).write_bytes(content)
    downloaded = AutoencoderKL.from_pretrained(tmp_path)
    uploaded = AutoencoderKL.from_pretrained(folder)
    assert all(torch.equal(downloaded.state_dict()[name], tensor) for name, tensor in uploaded.state_dict().items())
    output = capfd.readouterr()
    assert TOKEN not in caplog.text + output.out + output.err


def test_public_where_asked_for(hub: Hub, folder: Path) -> None:
    push_folder(folder, repo_id=REPO, private=False, api=HfApi(endpoint=hub.endpoint, token=TOKEN))
    assert hub.visibilities == ["public"]


@pytest.mark.parametrize("status", [401, 403, 500])
def test_a_refusal_is_one_line_without_the_token(status: int, hub: Hub, folder: Path) -> None:
    hub.refuse = status
    with pytest.raises(ValueError, match="push_to_hub: someone/my-vae was not uploaded") as caught:
        push_folder(folder, repo_id=REPO, private=True, api=HfApi(endpoint=hub.endpoint, token=TOKEN))
    assert "\n" not in str(caught.value)
    assert TOKEN not in str(caught.value)
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize("repo_id", ["no spaces allowed", "a/b/c"])
def test_a_wrong_id_is_one_line(repo_id: str, hub: Hub, folder: Path) -> None:
    with pytest.raises(ValueError, match="push_to_hub"):
        push_folder(folder, repo_id=repo_id, private=True, api=HfApi(endpoint=hub.endpoint, token=TOKEN))
    assert not hub.created


def test_no_token_and_no_network(hub: Hub, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "nothing"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    hub.refuse = 401
    with pytest.raises(ValueError, match="push_to_hub"):
        push_folder(folder, repo_id=REPO, private=True, api=HfApi(endpoint=hub.endpoint))
    endpoint = hub.endpoint
    hub.shutdown()
    hub.server_close()
    with pytest.raises(ValueError, match="push_to_hub"):
        push_folder(folder, repo_id=REPO, private=True, api=HfApi(endpoint=endpoint, token=TOKEN))
