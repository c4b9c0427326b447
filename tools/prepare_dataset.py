"""Put a data set on disk in the form that fct_jax reads.

Examples:
  python tools/prepare_dataset.py cifar100 --data_dir ~/data
      downloads CIFAR-100 through TFDS (160 MB)
  python tools/prepare_dataset.py cifar100 --data_dir ~/data --archive cifar-100-python.tar.gz
      does the same from an archive that you have already
  python tools/prepare_dataset.py cifar100 --data_dir ~/cifar100 --archive … --format folder
      writes PNG files to training/<class>/ and validation/<class>/, with classes 0 to 99
  python tools/prepare_dataset.py imagenet2012 --data_dir ~/data --manual_dir ~/downloads
      reads ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar in ~/downloads

Then pass --config.data.dir=DATA_DIR (and --config.data.name=folder for the folder form). Any other
TFDS data set can be prepared by its name, if the packages that TFDS needs for it are installed.
"""

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

import tensorflow_datasets as tfds
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)

from fct_jax.data.prepare import builders
from fct_jax.data.prepare.cifar import read_archive
from fct_jax.errors import UserError

FORMAT = "array_record"
FOLDERS = {"train": "training", "test": "validation"}


def main(arguments: list[str] | None = None) -> int:
    """Prepare the data set that the command line names; return the exit status."""
    options = _parser().parse_args(arguments)
    options.data_dir = options.data_dir.expanduser()
    try:
        where = prepare(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; nothing was kept", file=sys.stderr)
        return 1
    except ImportError as error:
        reason = str(error).strip().splitlines()[0]
        print(
            f"error: TFDS needs another package to prepare {options.name}: {reason} "
            "(install it for this step; reading works without it)",
            file=sys.stderr,
        )
        return 1
    except Exception as error:  # TFDS and the file system raise many kinds; each gets one line
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        print(f"error: {options.name} was not prepared: {reason}", file=sys.stderr)
        return 1
    print(f"{options.name} is ready in {where}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="cifar100, imagenet2012, or another name that TFDS knows")
    parser.add_argument(
        "--data_dir", required=True, type=Path, help="folder that the data set is written to"
    )
    parser.add_argument("--archive", type=Path, help="a cifar-100-python.tar.gz (cifar100 only)")
    parser.add_argument("--manual_dir", type=Path, help="folder of the files that you downloaded")
    parser.add_argument(
        "--format",
        choices=("tfds", "folder"),
        default="tfds",
        help="tfds: TFDS's files (default); folder: PNG files (needs --archive)",
    )
    return parser


def prepare(options: argparse.Namespace) -> Path:
    """Prepare ``options.name``; return the new folder. Raises UserError."""
    if options.archive is not None and options.name != "cifar100":
        raise UserError(f"--archive is for cifar100, not for {options.name}")
    if options.format == "folder" and options.archive is None:
        raise UserError("--format folder needs --archive cifar-100-python.tar.gz")
    if options.format == "folder":
        return write_folder(options.archive, options.data_dir)
    return write_tfds(options)


def write_tfds(options: argparse.Namespace) -> Path:
    """Write the TFDS form. TFDS writes to a temporary folder and renames it at the end."""
    builder = _builder(options.name, options.data_dir)
    target = Path(builder.data_path)
    if target.exists():
        raise UserError(f"{target} exists already; delete it to prepare it again")
    if options.archive is not None:
        builder.archive = read_archive(options.archive)
    with _Bar() as bar, tempfile.TemporaryDirectory() as scratch:
        if hasattr(builder, "progress"):
            builder.progress = bar
            tfds.disable_progress_bar()
        # Only downloads are worth keeping.
        download_dir = scratch if options.archive else options.data_dir / "downloads"
        builder.download_and_prepare(
            file_format=FORMAT,
            download_dir=download_dir,
            download_config=tfds.download.DownloadConfig(
                manual_dir=options.manual_dir, try_download_gcs=False
            ),
        )
    return target


def _builder(name: str, data_dir: Path):
    if name == "cifar100":
        return builders.Cifar100(data_dir=data_dir, file_format=FORMAT)
    if name == "imagenet2012":
        return builders.Imagenet2012(data_dir=data_dir, file_format=FORMAT)
    try:
        return tfds.builder(name, data_dir=data_dir, file_format=FORMAT)
    except tfds.core.DatasetNotFoundError:
        raise UserError(f"TFDS knows no data set {name!r}") from None


def write_folder(archive_path: Path, root: Path) -> Path:
    """Write CIFAR-100 as ``training/<class>/*.png`` and ``validation/<class>/*.png``."""
    if root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise UserError(f"{root} exists already and is not empty; name another --data_dir")
    archive = read_archive(archive_path)
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{root.name}.", dir=root.parent))
    try:
        with _Bar() as bar:
            for split, folder in FOLDERS.items():
                _write_images(archive.splits[split], partial / folder, lambda n, s=split: bar(s, n))
        partial.chmod(0o755)  # mkdtemp makes a folder that only its owner may enter
        partial.rename(root)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return root


def _write_images(split, folder: Path, progress) -> None:
    for label in range(100):
        (folder / str(label)).mkdir(parents=True)
    for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
        (folder / str(label) / f"{index:05d}.png").write_bytes(builders.png(image))
        progress(len(split.labels))


class _Rate(ProgressColumn):
    """Shows images per second."""

    def render(self, task) -> str:
        return f"{task.speed:.0f} images/s" if task.speed else ""


class _Bar:
    """Progress with rate and time left, one line per split; not animated outside a terminal."""

    def __init__(self):
        """Write to stderr, so that stdout holds only the result."""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            _Rate(),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )
        self._tasks = {}

    def __enter__(self) -> "_Bar":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def __call__(self, split: str, total: int | None) -> None:
        if split not in self._tasks:
            self._tasks[split] = self._progress.add_task(split, total=total)
        self._progress.advance(self._tasks[split])


if __name__ == "__main__":
    sys.exit(main())
