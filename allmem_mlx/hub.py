"""Models of the Hugging Face hub, by way of ``huggingface_hub``.

Token, cache, mirror and offline mode are that library's own: ``hf auth login`` or
``HF_TOKEN``, ``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``.
"""

import errno
import shlex
from collections.abc import Callable
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .errors import AllMemError, MissingLibrary, SettingError
from .version import __version__

# Everything of a model but its weights. mlx-lm's list without *.py: code of a
# repository is never run.
FILES = (
    "*.json",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
CARD = "README.md"  # for the licence; nothing fails without it
OTHER_FORMATS = ("onnx/*", "openvino/*", "original/*")
WEIGHTS = ("model*.safetensors",)
PICKLES = "pytorch_model*.bin"
SOURCES = (*WEIGHTS, PICKLES)  # of a model that is to be converted
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
OTHER_WEIGHTS = {
    "adapter_model.*": "merge it into its base with peft's merge_and_unload, and "
    "convert the result",
    "*.gguf": "`hf download {repo} {file}`, then convert that file with --gguf",
    PICKLES: "convert it: python -m allmem_mlx.convert --hf-path {repo} --mlx-path "
    "NEW_FOLDER",
    "*.bin": "load it with transformers, save it with save_pretrained, and convert "
    "that",
    "*.pt": "save it as safetensors, and convert that",
    "*.pth": "save it as safetensors, and convert that",
    "*.safetensors": "only model*.safetensors are read; rename it in a local folder",
}


def resolve(
    path_or_repo: str | Path,
    revision: str | None = None,
    check: Callable[[Path], object] | None = None,
    weights: tuple[str, ...] = WEIGHTS,
) -> Path:
    """The folder of a model, downloaded if it is not a local one.

    Args:
        path_or_repo (str | Path): a local folder or file or, if there is none of that
            name, a repository of the hub, ``ORG/NAME``.
        revision (str): branch, tag or commit of the repository. Default: ``main``.
        check (Callable): is given the folder before the weights are downloaded; what it
            raises ends the download.
        weights (tuple): patterns of weight files, of which the first that a repository
            has is downloaded.

    Returns:
        Path: the local path as it is, or the repository's folder in the cache.

    Raises:
        AllMemError: if there is no such path and no such repository, or it cannot be
            downloaded.
        SettingError: if a local path is given with a revision.
    """
    path = Path(path_or_repo)
    if path.exists():
        if revision is not None:
            raise SettingError(f"{path} is a local path; only the hub has revisions")
        return path
    repo = str(path_or_repo)
    if not is_repo_id(repo):
        raise AllMemError(
            f"{repo}: no such model folder, and not the name of a hub repository, "
            "ORG/NAME"
        )
    return _download(repo, revision, check, weights)


def _api() -> Any:
    from huggingface_hub import HfApi

    return HfApi(library_name="allmem_mlx", library_version=__version__)


def is_repo_id(name: str) -> bool:
    """Whether ``name`` can be a repository of the hub, ``ORG/NAME``."""
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return "/" in name


def _download(
    repo: str,
    revision: str | None,
    check: Callable[[Path], object] | None,
    patterns: tuple[str, ...],
) -> Path:
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    try:
        return _fetch(repo, revision, check, patterns)
    except AllMemError:
        raise
    except Exception as error:  # those of the HTTP library have no base of their own
        if not isinstance(error, RevisionNotFoundError):
            options = {"local_files_only": True}
            for pattern in patterns:
                with suppress(LocalEntryNotFoundError):  # not all of it is in the cache
                    folder = Path(
                        _snapshot(repo, revision, (*FILES, pattern), **options)
                    )
                    if any(folder.glob(pattern)):
                        return folder
        raise _explain(error, repo, revision) from error


def _fetch(
    repo: str,
    revision: str | None,
    check: Callable[[Path], object] | None,
    patterns: tuple[str, ...],
) -> Path:
    """Downloads what the cache does not have."""
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    api = _api()
    # Fails at once, where a snapshot tries again and again or waits without end.
    api.model_info(repo, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT)
    # Notes in the cache which commit this is and what files belong to it.
    folder = Path(_snapshot(repo, revision, ("config.json", CARD)))
    commit = folder.name
    files = _snapshot(repo, commit, (*FILES, *patterns), dry_run=True)
    of_pattern = [[x for x in files if fnmatch(x.filename, p)] for p in patterns]
    weights = next(filter(None, of_pattern), None)
    if weights is None:
        raise _no_weights(repo, api.list_repo_files(repo, revision=commit))
    if weights[0].filename.endswith(".bin"):
        import_torch(f"{repo}/{weights[0].filename}")

    def get(files: list[Any]) -> None:
        # One by one and in this thread: those of a snapshot do not hear Ctrl-C.
        for file in files:
            if file.will_download:
                api.hf_hub_download(repo, file.filename, revision=commit)

    get([file for file in files if not any(file in found for found in of_pattern)])
    if check is not None:
        check(folder)
    get(weights)
    return folder


def _snapshot(
    repo: str, revision: str | None, patterns: tuple[str, ...], **options: Any
) -> Any:
    return _api().snapshot_download(
        repo,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=list(OTHER_FORMATS),
        tqdm_class=_NoBar,
        **options,
    )


class _NoBar(tqdm):
    """A snapshot's own bar, where each file has one already."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **{**kwargs, "disable": True})


def _no_weights(repo: str, files: list[str]) -> AllMemError:
    """What to do with a repository that has its weights in another format."""
    for pattern, fix in OTHER_WEIGHTS.items():
        if found := [file for file in files if fnmatch(file, pattern)]:
            fix = fix.format(repo=repo, file=shlex.quote(found[0]))
            return AllMemError(f"{repo} has no {WEIGHTS[0]}, but {found[0]}: {fix}")
    return AllMemError(f"{repo} has no weights ({WEIGHTS[0]}); give another repository")


def _explain(error: Exception, repo: str, revision: str | None) -> AllMemError:
    """What a failed download means, and what to do, in a line."""
    from huggingface_hub import errors
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE

    def has(kind: type) -> bool:
        return any(isinstance(cause, kind) for cause in causes)

    causes = _causes(error)
    status = _status(error)
    access = _how_to_log_in()
    absent = f"is not, or not completely, in {HF_HUB_CACHE}"
    if has(errors.GatedRepoError):
        text = f"{repo} is gated: ask for access at {ENDPOINT}/{repo}, then {access}"
    elif has(errors.RepositoryNotFoundError):
        text = (
            f"{repo} is neither a local folder nor a repository at {ENDPOINT}, or it "
            f"is private: check the name, or {access}"
        )
    elif has(errors.RevisionNotFoundError):
        text = f"{repo} has no revision {revision!r}"
    elif status in (401, 403):
        text = f"{ENDPOINT} refuses access to {repo}: {access}"
    elif getattr(causes[-1], "errno", None) in UNWRITABLE:
        text = (
            f"{repo} could not be downloaded to {HF_HUB_CACHE} ({_line(causes[-1])}): "
            "make room there, or set HF_HOME to a folder elsewhere"
        )
    elif has(errors.OfflineModeIsEnabled):
        text = f"{repo} {absent}, and HF_HUB_OFFLINE forbids to download it: unset it"
    else:
        text = (
            f"{repo} could not be downloaded from {ENDPOINT} ({_line(causes[-1])}), "
            f"and {absent}: check the network and try again; complete files are kept"
        )
    return AllMemError(text)


def _how_to_log_in() -> str:
    from huggingface_hub import get_token

    if get_token() is None:
        return "log in with `hf auth login` or set HF_TOKEN"
    return "use a token that has access (`hf auth login` or HF_TOKEN)"


def _causes(error: BaseException) -> list[BaseException]:
    """The error, what caused it, and so on to the root."""
    causes = [error]
    while (cause := causes[-1].__cause__) is not None:
        causes.append(cause)
    return causes


def _status(error: Exception) -> int | None:
    """The HTTP status that is at the root of an error."""
    response = getattr(_causes(error)[-1], "response", None)
    return getattr(response, "status_code", None)


def _line(error: BaseException) -> str:
    """The first line of a message; those of the hub have many."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].strip()


def origin(path: Path) -> tuple[str, str] | None:
    """The repository and the commit of a folder in ``huggingface_hub``'s cache, or of a
    file in it."""
    folder = path.parent if path.is_file() else path  # the file itself is a link
    for place in (folder.absolute(), folder.resolve()):
        match place.parts:
            case [*_, repo, "snapshots", commit] if repo.startswith("models--"):
                return repo.removeprefix("models--").replace("--", "/"), commit
    return None


def name_of(path: Path) -> str:
    """What to call a folder or file where its place is nobody's business."""
    name = path.name or path.resolve().name
    if (found := origin(path)) is None:
        return name
    return f"{found[0]}/{name}" if path.is_file() else found[0]


def remedy(file: Path) -> str:
    """What to do about a damaged file."""
    if origin(file.parent) is None:
        return "get it again"
    # Its name in the cache is a link, which would be made again.
    return f"delete {file.resolve()} and try again"


def import_torch(file: Path | str) -> Any:
    """PyTorch, for a file that only it reads and writes.

    Raises:
        MissingLibrary: if it is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingLibrary(
            f"{file} needs PyTorch: pip install torch, or use safetensors"
        ) from None
    return torch


def check_upload(repo: str) -> None:
    """Refuses what is known beforehand to end in no upload.

    Raises:
        SettingError: if ``repo`` is not ``ORG/NAME``.
        AllMemError: if nobody is logged in, or in offline mode.
    """
    from huggingface_hub import constants, get_token

    if not is_repo_id(repo):
        raise SettingError(f"{repo!r} is not the name of a hub repository, ORG/NAME")
    if constants.HF_HUB_OFFLINE:
        raise AllMemError(f"HF_HUB_OFFLINE forbids the upload to {repo}; unset it")
    if get_token() is None:
        raise AllMemError(f"the upload to {repo} needs a token: {_how_to_log_in()}")


def upload(folder: Path, repo: str) -> str:
    """Uploads a model folder; the repository is created if there is none.

    Args:
        folder (Path): the folder.
        repo (str): ``ORG/NAME``.

    Returns:
        str: where it is to be seen.

    Raises:
        AllMemError: if the upload fails; the folder is left as it is.
    """
    api = _api()
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo)
    except Exception as error:  # those of the HTTP library have no base of their own
        reason = _line(_causes(error)[-1])
        if _status(error) in (401, 403):
            reason += "; the token must be allowed to write there"
        raise AllMemError(
            f"{folder} is complete, but was not uploaded to {repo} ({reason}); try "
            f"again with `hf upload {repo} {shlex.quote(str(folder))}`"
        ) from error
    return str(url)
