"""Names that are not files: `yolo26n.pt` and `coco8.yaml` mean what they mean to Ultralytics.

Only a bare name that Ultralytics itself knows is ever downloaded. A dataset YAML of the user's own is read
and nothing more, whatever its `download:` key says.
"""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from qexport.compat.quiet import quiet_ultralytics
from qexport.data.dataset import Dataset, load_dataset, load_folder, load_list
from qexport.errors import InputError
from qexport.system.given_files import special_kind
from qexport.system.nearby import names_beside
from qexport.vocabulary import closest

_DOWNLOAD_HOST = "github.com"
_CONNECT_SECONDS = 3.0
SIZES = "nsmlx"
"""Letters of Ultralytics' models, from the smallest to the largest."""


def resolve_model(name: str, download: bool = True) -> Path:
    """The checkpoint that `name` means: a file, or a released checkpoint of Ultralytics, fetched if needed.

    A fetched checkpoint is written where Ultralytics puts it: into the working directory.

    Args:
        download: without, it is found out whether it could be fetched, and where it would be then.

    Raises:
        InputError: there is no such file or released checkpoint, or it cannot be fetched.
    """
    if os.path.isfile(name):
        return Path(name)
    if os.path.isdir(name):
        raise InputError(f"model {name} is a folder", "give the path of a .pt checkpoint")
    if kind := special_kind(name):
        raise InputError(f"model {name} is {kind}, not a file", "give the path of a .pt checkpoint")
    if not _is_bare(name):
        raise InputError(f"model {name} does not exist", "give the path of a .pt checkpoint")
    quiet_ultralytics()
    from ultralytics.utils import SETTINGS
    from ultralytics.utils.checks import check_yolov5u_filename
    from ultralytics.utils.downloads import GITHUB_ASSETS_NAMES, attempt_download_asset

    asset = str(check_yolov5u_filename(name, verbose=False))
    for folder in (Path(), Path(SETTINGS["weights_dir"])):
        if (folder / asset).is_file():
            return folder / asset
    released = sorted((known for known in GITHUB_ASSETS_NAMES if known.endswith(".pt")), key=_by_size)
    if asset not in released:
        raise _unknown("model", name, "the path of a .pt checkpoint", released)
    if not download:
        _check_reachable(f"model {name}", _DOWNLOAD_HOST)
        return Path(asset)
    _fetch(f"model {name}", _DOWNLOAD_HOST, lambda: attempt_download_asset(asset, retry=1))
    if not os.path.isfile(asset):
        raise InputError(f"model {name} could not be downloaded", "fetch it by hand and give its path")
    return Path(asset)


def resolve_data(name: str) -> Dataset:
    """The data set that `name` means: a YAML, or one that comes with Ultralytics, images fetched if needed.

    Raises:
        InputError: there is no such file or data set, it cannot be read, or its images cannot be fetched.
    """
    if os.path.exists(name):
        return _own_dataset(Path(name))
    if not _is_bare(name):
        raise InputError(f"dataset {name} does not exist", "give the path of a dataset YAML")
    file = bundled_data(name)
    if file is None:
        raise _unknown("dataset", name, "the path of a dataset YAML", known_data())
    quiet_ultralytics()
    from ultralytics.utils import SETTINGS

    datasets_dir = Path(SETTINGS["datasets_dir"])
    dataset = load_dataset(file, datasets_dir)
    if dataset.download and not _is_complete(dataset):
        _fetch_dataset(dataset)
        dataset = load_dataset(file, datasets_dir)
    return dataset


def bundled_data(name: str) -> Path | None:
    """The YAML of a data set that Ultralytics knows by name; None for no such. Ultralytics is not imported."""
    folder = _bundled()
    return next((file for file in (folder / name, folder / f"{name}.yaml") if file.is_file()), None)


def known_data() -> list[str]:
    """Names of the data sets that come with Ultralytics."""
    return sorted(file.name for file in _bundled().glob("*.yaml"))


def _bundled() -> Path:
    found = find_spec("ultralytics")
    return Path(*(found.submodule_search_locations or ())[:1] if found else ()) / "cfg" / "datasets"


def is_reachable(host: str, port: int = 443, seconds: float = _CONNECT_SECONDS) -> bool:
    """Whether a connection to `host`, or to the proxy in front of it, opens within about `seconds`.

    YOLO_OFFLINE is not asked: qexport.compat.quiet sets it, and Ultralytics too downloads in spite of it.
    """
    proxy = "" if proxy_bypass(host) else getproxies().get("https", "")
    if proxy:
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        host, port = parts.hostname or host, parts.port or 80
    answer: list[bool] = []
    # A silent name server blocks getaddrinfo for longer than any socket timeout, hence the thread.
    probe = threading.Thread(target=lambda: answer.append(_connects(host, port, seconds)), daemon=True)
    probe.start()
    probe.join(seconds + 1)
    return bool(answer and answer[0])


def _connects(host: str, port: int, seconds: float) -> bool:
    try:
        socket.create_connection((host, port), timeout=seconds).close()
    except OSError:
        return False
    return True


def _own_dataset(path: Path) -> Dataset:
    if path.is_dir():
        return load_folder(path)
    if path.suffix.lower() == ".txt":
        return load_list(path)
    dataset = load_dataset(path)
    if os.path.exists(dataset.root):
        return dataset
    # Only now, because it imports torch: Ultralytics would look in its own folder for data sets as well.
    quiet_ultralytics()
    from ultralytics.utils import SETTINGS

    return load_dataset(path, Path(SETTINGS["datasets_dir"]))


def _is_bare(name: str) -> bool:
    return bool(name) and name == os.path.basename(name) and "://" not in name


def _is_complete(dataset: Dataset) -> bool:
    sources = [*dataset.splits.get("train", ()), *dataset.splits.get("val", ())]
    return all(os.path.exists(source) for source in sources)


def _fetch_dataset(dataset: Dataset) -> None:
    from ultralytics.data.utils import check_det_dataset

    url = urlsplit(dataset.download or "")
    host = url.hostname if url.scheme in {"http", "https"} and url.hostname else _DOWNLOAD_HOST
    _fetch(f"dataset {dataset.yaml.name}", host, lambda: check_det_dataset(str(dataset.yaml)))


def _check_reachable(what: str, host: str) -> None:
    if not is_reachable(host):
        raise InputError(
            f"{what} is not on this machine and {host} cannot be reached to download it",
            "give the path of a local file, or connect and try again",
        )


def _fetch(what: str, host: str, download: Callable[[], object]) -> None:
    _check_reachable(what, host)
    try:
        download()
    except Exception as error:  # Ultralytics raises from OSError to SyntaxError here, and each means the same
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"{what} could not be downloaded ({reason})", "fetch it by hand and give its path") from error


def _by_size(name: str) -> tuple[int, str]:
    """What sorts released models, the smallest first, which is the likeliest to be meant."""
    size = re.search(rf"(?<=\d)[{SIZES}]", name)
    return SIZES.index(size[0]) if size else 0, name


def _unknown(kind: str, name: str, wanted: str, known: list[str]) -> InputError:
    near = closest(name, [*names_beside(name), *known])
    hint = f", or did you mean {near}" if near else ""
    return InputError(f"{kind} {name} does not exist", f"give {wanted}{hint}")
