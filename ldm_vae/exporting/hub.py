"""Uploading an export to the hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi


def push_folder(folder: Path, *, repo_id: str, private: bool, api: HfApi | None = None) -> str:
    """Upload an export as a model repository, created where it isn't there yet; return its address.

    Args:
        private: of a repository that is created; one that is there stays as it is.
        api: the hub and its token; None: huggingface.co or HF_ENDPOINT, with the token of `hf auth login` or HF_TOKEN.
    Raises:
        ValueError: in one line, where the hub doesn't take it. The folder is untouched.
    """
    api = HfApi() if api is None else api
    try:
        api.create_repo(repo_id, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(repo_id=repo_id, folder_path=folder, commit_message="Export by ldm-vae")
    except Exception as error:  # which ones depends on huggingface_hub's HTTP library
        reason = " ".join(str(error).split())
        raise ValueError(f"push_to_hub: {repo_id} was not uploaded, the export is in {folder}: {reason}") from error
    return f"{api.endpoint}/{repo_id}"
