"""Pushing a finished folder to the Hugging Face hub; nothing else of this project sends data."""

from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from utils.errors import UserError

FLAG = "--push_to_hub"
HELP = "at the end send the finished folder to this repository of the hub, USER/NAME"


def check_push(repo):
    """Refuses a push that can't succeed, before hours of work and without the network.

    repo: the id that --push_to_hub gives, or None for no push. Raises UserError.
    """
    if repo is None:
        return
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"{FLAG} {repo}: not the id of a repository ({_line(error)})") from None
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{FLAG} {repo}: HF_HUB_OFFLINE forbids it; unset that or leave out {FLAG}")
    if get_token() is None:
        raise UserError(f"{FLAG} {repo}: no token of the hub; run `hf auth login` or set HF_TOKEN")


def push(folder, repo, repo_type, files):
    """Uploads the files of a folder, in one commit, to a repository that is created if need be.

    repo_type: "model" or "dataset". files: patterns relative to the folder; a pattern without a
    slash means files of the folder itself. Raises UserError when the upload fails.
    """
    paths = sorted({path for pattern in files for path in folder.glob(pattern)})
    names = [path.relative_to(folder).as_posix() for path in paths]
    try:
        api = HfApi()
        created = api.create_repo(repo, repo_type=repo_type, exist_ok=True)
        api.upload_folder(
            repo_id=created.repo_id, repo_type=repo_type, folder_path=folder, allow_patterns=names,
            commit_message=f"Upload {folder.name}",
        )  # fmt: skip
    except Exception as error:  # of the hub and of the network; they share no base class
        reason = f"{type(error).__name__}: {_line(error)}"
        mend = f"{folder} is finished: repeat the command to push it"
        raise UserError(f"{FLAG} {repo}: not pushed ({reason}); {mend}") from None
    print(f"pushed {folder} to {created}", flush=True)


def _line(error):
    return " ".join(str(error).split())[:200]
