"""Uploading an export to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi

from ldm_vae.config.rules import FieldError, mark
from ldm_vae.system.text import one_line


def push_folder(folder: Path, *, repo_id: str, private: bool, api: HfApi | None = None) -> str:
    """Upload an export as a model repository, created where it isn't there yet; return its address.

    Args:
        folder: What is uploaded, with all files in it.
        repo_id: The repository, as `owner/name`.
        private: Whether a repository that is created is private; one that is there stays as it is.
        api: The hub and its token. None stands for huggingface.co or HF_ENDPOINT, with the token of `hf auth login` or
            HF_TOKEN.

    Raises:
        ValueError: In one line, where the hub doesn't take it. The folder is untouched.
    """
    api = HfApi() if api is None else api
    try:
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export by ldm-vae")
    except Exception as error:  # which ones depends on huggingface_hub's HTTP library
        reason = one_line(error)
        raise FieldError(
            f"{mark('push_to_hub')}: {repo_id} was not uploaded, the export is in {folder}: {reason}"
        ) from error
    return f"{api.endpoint}/{repo_id}"
