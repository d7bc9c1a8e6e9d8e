"""Models of the Hugging Face hub, by way of ``huggingface_hub``.

Token, cache, mirror and offline mode are that library's own: ``hf auth login`` or
``HF_TOKEN``, ``HF_HOME``, ``HF_ENDPOINT``, ``HF_HUB_OFFLINE``.
"""

import errno
import shlex
from collections.abc import Callable, Sequence
from contextlib import suppress
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from .errors import AllMemError, SettingError, import_library
from .gguf_names import all_parts, model_among
from .version import __version__

# All files of a model but its weights. mlx-lm's list without *.py: code of a repository
# is never run.
FILES = (
    "*.json",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
)
CONFIG = "config.json"
CARD = "README.md"  # for the licence; nothing fails without it
OTHER_FORMATS = ("onnx/*", "openvino/*", "original/*")
WEIGHTS = ("model*.safetensors",)
PICKLES = "pytorch_model*.bin"
SOURCES = (*WEIGHTS, PICKLES)  # of a model that is to be converted
LOG_IN = "log in with `hf auth login` or set HF_TOKEN to a token that has access"
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)
OTHER_WEIGHTS = {
    "adapter_model.*": "merge it into its base with peft's merge_and_unload, and "
    "convert the result",
    "*.gguf": "`hf download {repo} {file}`, then convert it with --gguf",
    PICKLES: "convert it: allmem_mlx convert --hf-path {repo} --mlx-path NEW_FOLDER",
    "*.bin": "load it with transformers, save it with save_pretrained, and convert "
    "that",
    "*.pt*": "save it as safetensors, and convert that",
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
        check (Callable): called with the folder before the weights are downloaded; an
            exception ends the download.
        weights (tuple): patterns of weight files; the first that fits any file is used.

    Returns:
        Path: the local path as it is, or the repository's folder in the cache.

    Raises:
        AllMemError: if there is neither such a path nor such a repository, or if the
            download fails.
        SettingError: if a local path is given with a revision.
    """
    if (path := _local(path_or_repo, revision)) is not None:
        return path
    repo = str(path_or_repo)
    fetch = partial(_fetch, repo, revision, check, weights)
    return _download(repo, revision, fetch, [(*FILES, kind) for kind in weights])


def resolve_config(path_or_repo: str | Path, revision: str | None = None) -> Path:
    """The folder of a model of which ``config.json`` is needed, and nothing else.

    Args:
        path_or_repo (str | Path): see :func:`resolve`.
        revision (str): branch, tag or commit of the repository. Default: ``main``.

    Returns:
        Path: the local path as it is, or the repository's folder in the cache, of which
        nothing but ``config.json`` was downloaded.

    Raises:
        AllMemError, SettingError: see :func:`resolve`.
    """
    if (path := _local(path_or_repo, revision)) is not None:
        return path
    repo = str(path_or_repo)
    fetch = partial(_fetch_config, repo, revision)
    return _download(repo, revision, fetch, [(CONFIG,)])


def _local(path_or_repo: str | Path, revision: str | None) -> Path | None:
    """A local path; ``None`` for the name of a repository."""
    path = Path(path_or_repo)
    if path.exists():
        if revision is not None:
            raise SettingError(f"{path} is a local path; only the hub has revisions")
        return path
    if not is_repo_id(str(path_or_repo)):
        raise AllMemError(
            f"{path_or_repo}: no such model folder, and not the name of a hub "
            "repository, ORG/NAME"
        )
    return None


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
    fetch: Callable[[], Path],
    choices: Sequence[tuple[str, ...]],
) -> Path:
    """The folder of a repository in the cache, completed if there is a network.

    Args:
        repo, revision: of the hub.
        fetch (Callable): completes it.
        choices (list): patterns of files, of which those of one choice are enough
            without a network; the last pattern must fit a file.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError, RevisionNotFoundError

    try:
        return fetch()
    except AllMemError:
        raise
    except RevisionNotFoundError:
        raise AllMemError(f"{repo} has no revision {revision!r}") from None
    except Exception as error:  # those of the HTTP library have no common base
        for patterns in choices:
            with suppress(LocalEntryNotFoundError):  # the cache lacks some of it
                folder = _snapshot(repo, revision, patterns, local_files_only=True)
                if any(folder.glob(patterns[-1])):
                    return folder
        raise _explain(error, repo) from error


def _files(repo: str, revision: str | None) -> list[str]:
    """The files of a repository. Fails at once, where a snapshot retries or waits
    without end."""
    from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

    info = _api().model_info(repo, revision=revision, timeout=HF_HUB_ETAG_TIMEOUT)
    return [file.rfilename for file in info.siblings or ()]


def _fetch_config(repo: str, revision: str | None) -> Path:
    if CONFIG not in _files(repo, revision):
        raise AllMemError(
            f"{repo} has no {CONFIG}; give a repository with a model of transformers "
            "or mlx-lm"
        )
    return _snapshot(repo, revision, (CONFIG,))


def _fetch(
    repo: str,
    revision: str | None,
    check: Callable[[Path], object] | None,
    patterns: tuple[str, ...],
) -> Path:
    api = _api()
    _files(repo, revision)
    # Records in the cache which commit this is and what files belong to it.
    folder = _snapshot(repo, revision, (CONFIG, CARD))
    files = api.list_repo_files(repo, revision=folder.name)
    ignored = _matching(files, *OTHER_FORMATS)
    usable = [file for file in files if file not in ignored]

    def get(files: list[str]) -> None:
        # One by one and in this thread: those of a snapshot do not hear Ctrl-C.
        for file in files:
            api.hf_hub_download(repo, file, revision=folder.name)

    choices = (_matching(usable, pattern) for pattern in patterns)
    weights = next(filter(None, choices), None)
    if weights is None:
        raise _no_weights(repo, files)
    if weights[0].endswith(".bin"):
        import_library("torch", f"{repo}/{weights[0]} needs PyTorch", "torch")
    get(_matching(usable, *FILES))
    if check is not None:
        check(folder)
    get(weights)
    return folder


def _matching(files: list[str], *patterns: str) -> list[str]:
    return [x for x in files if any(fnmatch(x, pattern) for pattern in patterns)]


def _snapshot(
    repo: str, revision: str | None, patterns: tuple[str, ...], **options: Any
) -> Path:
    folder = _api().snapshot_download(
        repo,
        revision=revision,
        allow_patterns=patterns,
        ignore_patterns=OTHER_FORMATS,
        tqdm_class=_NoBar,
        **options,
    )
    return Path(folder)


class _NoBar(tqdm):
    """No bar for a snapshot: each file has one."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **{**kwargs, "disable": True})


def _no_weights(repo: str, files: list[str]) -> AllMemError:
    """The error of a repository without weights, or with weights in another format."""
    for pattern, fix in OTHER_WEIGHTS.items():
        if found := _matching(files, pattern):
            file = model_among(found) if pattern == "*.gguf" else found[0]
            name = shlex.quote(file)
            if (parts := all_parts(file)) is not None:
                name = f"--include {shlex.quote(parts)}"
            fix = fix.format(repo=repo, file=name)
            return AllMemError(f"{repo} has no {WEIGHTS[0]}, but {file}: {fix}")
    return AllMemError(f"{repo} has no weights ({WEIGHTS[0]}); give another repository")


def _explain(error: Exception, repo: str) -> AllMemError:
    """The error of a failed download: no access, no disk, or no network."""
    from huggingface_hub.constants import ENDPOINT, HF_HUB_CACHE
    from huggingface_hub.errors import RepositoryNotFoundError

    root = _root(error)
    if isinstance(error, RepositoryNotFoundError) or _is_denied(root):
        text = (
            f"{repo} is neither a local folder nor a repository to which {ENDPOINT} "
            f"gives access: check the name, ask for access on {ENDPOINT}/{repo} if it "
            f"is gated, or {LOG_IN}"
        )
    elif getattr(root, "errno", None) in UNWRITABLE:
        text = (
            f"{repo} could not be downloaded to {HF_HUB_CACHE} ({_line(root)}): make "
            "room there, or set HF_HOME to a folder elsewhere"
        )
    else:
        text = (
            f"{repo} could not be downloaded from {ENDPOINT} ({_line(root)}), and is "
            f"not, or not completely, in {HF_HUB_CACHE}: check the network and try "
            "again; complete files are kept"
        )
    return AllMemError(text)


def _root(error: BaseException) -> BaseException:
    """The first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _is_denied(error: BaseException) -> bool:
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status in (401, 403)


def _line(error: BaseException) -> str:
    """The first line of a message; those of the hub have many."""
    return str(error).strip().partition("\n")[0] or type(error).__name__


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
    """The name of a folder or file without its location, which may be private."""
    name = path.name or path.resolve().name
    if (found := origin(path)) is None:
        return name
    return f"{found[0]}/{name}" if path.is_file() else found[0]


def remedy(file: Path) -> str:
    """Advice for a damaged file."""
    if origin(file.parent) is None:
        return "get it again"
    # The name in the cache is a link; deleted alone, it would be made again.
    return f"delete {file.resolve()} and try again"


def check_upload(repo: str) -> None:
    """Refuses an upload that is bound to fail.

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
        raise AllMemError(f"the upload to {repo} needs a token: {LOG_IN}")


def upload(folder: Path, repo: str) -> str:
    """Uploads a model folder; the repository is created if there is none.

    Args:
        folder (Path): the folder.
        repo (str): ``ORG/NAME``.

    Returns:
        str: the URL of the repository.

    Raises:
        AllMemError: if the upload fails; the folder is left as it is.
    """
    api = _api()
    try:
        url = api.create_repo(repo, exist_ok=True)
        api.upload_folder(folder_path=folder, repo_id=repo)
    except Exception as error:  # those of the HTTP library have no common base
        root = _root(error)
        reason = _line(root)
        if _is_denied(root):
            reason += "; the token must be allowed to write there"
        raise AllMemError(
            f"{folder} is complete, but was not uploaded to {repo} ({reason}); try "
            f"again with `hf upload {repo} {shlex.quote(str(folder))}`"
        ) from error
    return str(url)
