"""What lies in a folder, a zip file or tar files: which of it are pictures, and what is said of the rest."""

import os
import re
import stat
import struct
import tarfile
import zipfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from io import BytesIO
from pathlib import Path, PurePosixPath

from imago.data.metadata import ImageFile, UnreadableError
from imago.errors import UserError

# Named so, a file is a picture, whether it can be read here or not.
_PICTURES = """
.png .apng .jpg .jpeg .jpe .jfif .mpo .bmp .dib .gif .webp .tif .tiff .ppm .pgm .pbm .pnm .pfm .pam .avif .avifs .jp2
.j2k .j2c .jpc .jpf .jpx .qoi .ico .icns .cur .tga .pcx .sgi .ras .xbm .xpm .dds .exr .hdr .psd .psb .xcf .heic .heif
.hif .jxl .jxr .wdp .svg .svgz .eps .wmf .emf .ai .dng .raw .cr2 .cr3 .crw .nef .nrw .arw .orf .rw2 .raf .pef .srw .x3f
.fits .fit .dcm
"""
# Named so, a file is none, and is not looked into.
_NO_PICTURES = """
.txt .cls .json .jsonl .csv .tsv .xml .md .html .htm .yaml .yml .toml .ini .cfg .log .caption .tags .npy .npz .pt .pth
.safetensors .ckpt .pkl .parquet .arrow .h5 .hdf5 .mat .db .sqlite .lock .py .ipynb .sh .zip .tar .gz .tgz .bz2 .xz .7z
.rar .zst .mp4 .mov .avi .mkv .webm .mp3 .wav .pdf .doc .docx .xls .xlsx .aae .xmp .thm .url .lnk
"""
# What systems and network drives put beside anybody's files: thumbnails, indexes, bins. In lower case.
_SYSTEMS = """
thumbs.db|ehthumbs.db|ehthumbs_vista.db|desktop.ini|folder.htt|autorun.inf|$recycle.bin|recycler
system volume information|__macosx|.ds_store|.localized|.appledouble|.apdisk|.fseventsd|.trashes|.spotlight-v100
.documentrevisions-v100|.temporaryitems|temporary items|network trash folder|@eadir|@tmp|@sharebin|#recycle|#snapshot
@recycle|@recently-snapshot|.@__thumb|.streams|.snapshot|~snapshot|lost+found|.thumbnails|.thumbs|.xvpics|.picasa.ini
picasa.ini|.picasaoriginals|.nomedia|.directory|.hidden|.sync|.dropbox.cache|.git|.svn|.hg|.dvc|.cache
.ipynb_checkpoints
"""
_PICTURE, _NO_PICTURE = frozenset(_PICTURES.split()), frozenset(_NO_PICTURES.split())
_SYSTEM = frozenset(["icon\r", *_SYSTEMS.replace("|", "\n").strip().split("\n")])
_STARTS = (  # of pictures, for files whose names do not tell
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|II\*\0|MM\0\*|RIFF....WEBP|qoif|8BPS|\xff\x4f\xff\x51|BM....\0\0\0\0|"
    rb"....ftyp(avif|avis|heic|heix|hevc|mif1|msf1)|\0\0\0\x0c(jP  |JXL )\r\n\x87\n"
)
_MAGIC = re.compile(_STARTS, re.DOTALL)
_LARGEST = 2**30  # bytes that a file of a zip may unpack to


def of_a_system(name: str) -> bool:
    """Whether a file or folder of this name belongs to a system: nothing that anybody put there."""
    name = name.casefold()
    return name in _SYSTEM or name.startswith(("._", ".trash-", ".nfs")) or name.endswith("zone.identifier")


class Container(ABC):
    """The files of a folder or of a zip: their names, what tells that they changed, and their bytes.

    Names are relative to the container, with forward slashes. Files of systems are left out.
    """

    def __init__(self, path: Path, place: str) -> None:
        self.path = path
        self.place = place  # what tells it from others whose files have the same stamps
        self.stamps: dict[str, str] = {}  # name -> size and dates, or size and checksum
        self.special: dict[str, str] = {}  # name -> what it is instead of a file with bytes
        self.folders: set[str] = set()
        self.notices: list[str] = []  # what was passed over

    @abstractmethod
    def open(self, name: str) -> ImageFile:
        """The file's bytes.

        Raises:
            Exception: it cannot be read.
        """


class FolderFiles(Container):
    """Everything in a folder, also through links; each real file once, under its own name before that of a link.

    Raises:
        UserError: a folder cannot be read.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, str(path.resolve()))
        self._again: list[str] = []  # links and files that lead to what is there already
        # A link to a folder above this one would bring in everything beside it.
        self._seen = {self._identity(folder.stat()) for folder in Path(self.place).parents}
        waiting = [""]  # the folder, then links, for real files come first
        for name in waiting:
            waiting += self._take_in(name)
        if self._again:
            self.notices.append(
                f"{len(self._again):,} links and names lead to what is counted already, such as {self._again[0]}"
            )

    def open(self, name: str) -> ImageFile:
        """See :meth:`Container.open`; pipes and devices are not opened."""
        if name in self.special:
            raise UnreadableError(self.special[name])
        return (self.path / name).open("rb")

    @staticmethod
    def _identity(status: os.stat_result) -> tuple[int, ...]:
        return status.st_dev, status.st_ino

    def _take_in(self, start: str) -> list[str]:
        """Take in the folder, or what a link leads to, and all that is below it; returns the links met."""
        try:
            status = (self.path / start).stat()
        except OSError as error:  # it leads nowhere, or in a circle
            self.stamps[start], self.special[start] = "nowhere", f"a link that leads nowhere ({error.strerror})"
            return []
        pending, files, links = ([start], [], []) if stat.S_ISDIR(status.st_mode) else ([], [(start, status)], [])
        try:
            while pending:
                inside = pending.pop()
                if self._met(self._identity((self.path / inside).stat()), inside):
                    continue
                self.folders.add(inside)
                with os.scandir(self.path / inside) as entries:
                    for entry in entries:
                        name = f"{inside}/{entry.name}" if inside else entry.name
                        if of_a_system(entry.name):
                            continue
                        if entry.is_symlink():
                            links.append(name)
                        elif entry.is_dir():
                            pending.append(name)
                        else:
                            files.append((name, entry.stat(follow_symlinks=False)))
        except OSError as error:
            raise UserError(f"data.path={self.path}: a folder cannot be read ({error}). Change its rights.") from None
        for name, status in sorted(files, key=lambda file: file[0]):
            if not stat.S_ISREG(status.st_mode):
                self.special[name] = "a pipe, socket or device instead of a file"
            elif self._met((*self._identity(status), status.st_size, status.st_mtime_ns), name):
                continue
            # The time of any last change too: it tells a file that was replaced by one of its size and date.
            self.stamps[name] = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        return sorted(links)

    def _met(self, identity: tuple[int, ...], name: str) -> bool:
        if identity in self._seen and identity[1]:  # some network drives number nothing
            self._again.append(name)
            return True
        self._seen.add(identity)
        return False


class ZipFiles(Container):
    """The members of a zip file, whatever system wrote it.

    Raises:
        UserError: it is no zip file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, "")  # checksums tell enough
        self._members: dict[str, zipfile.ZipInfo] = {}
        try:
            if not path.is_file():
                raise ValueError("it is a pipe, socket or device")
            self._archive = zipfile.ZipFile(path)
            _check_count(path, len(self._archive.infolist()))
        except Exception as error:  # a dozen types, none documented
            raise UserError(
                f"data.path={path}: is neither a folder nor a zip file that can be read ({error}). Unpack other "
                "archives, or give their content as a zip file or an uncompressed .tar."
            ) from None
        twice = []
        for entry in self._archive.infolist():
            name, folder = _plain(entry)
            parts = PurePosixPath(name).parts
            if not name or any(map(of_a_system, parts)):
                continue
            self.folders |= {"/".join(parts[:k]) for k in range(1, len(parts) + folder)}
            if folder:
                continue
            if name in self._members:
                twice.append(name)
            self._members[name] = entry
            self.stamps[name] = f"{entry.file_size} {entry.CRC:08x}"
        if twice:
            self.notices.append(f"{len(twice):,} names stand there twice, such as {twice[0]}: the last one counts")

    def open(self, name: str) -> ImageFile:
        """See :meth:`Container.open`."""
        entry = self._members[name]
        if entry.file_size > _LARGEST:
            raise UnreadableError(f"would unpack to {entry.file_size:,} bytes")
        return BytesIO(self._archive.read(entry))


class TarFiles(Container):
    """The members of tar files without compression, such as WebDataset's: of several, as if they were one.

    Args:
        path: the file, or the folder that holds the files.
        files: the tar files.

    Raises:
        UserError: one cannot be read, or a name stands there twice.
    """

    def __init__(self, path: Path, files: Iterable[Path]) -> None:
        super().__init__(path, "")
        self._places: dict[str, tuple[Path, int, int]] = {}  # name -> file, first byte, number of bytes
        for file in files:
            try:
                if not file.is_file():
                    raise ValueError("it is a pipe, socket or device")
                status = file.stat()
                with tarfile.open(file, "r:") as archive:
                    for member in archive:
                        archive.members = []  # type: ignore[attr-defined] # which would keep a kilobyte of each
                        self._take_in(file, status, member)
            except UserError:
                raise
            except Exception as error:  # a dozen types
                raise UserError(
                    f"data.path={file}: is no tar file that can be read ({error}). Get it again; unpack a compressed "
                    "one with gunzip, xz or zstd."
                ) from None

    def open(self, name: str) -> ImageFile:
        """See :meth:`Container.open`."""
        if name in self.special:
            raise UnreadableError(self.special[name])
        path, first, size = self._places[name]
        if size > _LARGEST:
            raise UnreadableError(f"has {size:,} bytes")
        with path.open("rb") as file:
            file.seek(first)
            content = file.read(size)
        if len(content) < size:
            raise UnreadableError("is cut short")
        return BytesIO(content)

    def _take_in(self, file: Path, status: os.stat_result, member: tarfile.TarInfo) -> None:
        parts = [part for part in member.name.split("/") if part not in ("", ".", "..")]
        name = "/".join(parts)
        if not name or any(map(of_a_system, parts)):
            return
        self.folders |= {"/".join(parts[:k]) for k in range(1, len(parts) + member.isdir())}
        if member.isdir():
            return
        if name in self.stamps:
            raise UserError(f"data.path={self.path}: {name} stands there twice. Unpack the tar files into folders.")
        if member.isreg() and not member.issparse():
            self._places[name] = file, member.offset_data, member.size
        else:
            self.special[name] = "a link or device instead of a file"
        self.stamps[name] = f"{member.size} {member.mtime} {status.st_size} {status.st_mtime_ns}"


def _check_count(path: Path, found: int) -> None:
    """Hold the members found against the number at the end of the archive: zipfile does not, and may find fewer."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - 2**16 - 22))  # a comment may follow
        end = file.read()
    (promised,) = struct.unpack_from("<H", end, end.rindex(b"PK\5\6") + 10)
    if promised not in (found, 0xFFFF):  # more are counted elsewhere
        raise ValueError(f"it says that it has {promised:,} members, but lists {found:,}")


def _plain(entry: zipfile.ZipInfo) -> tuple[str, bool]:
    """A member's name as a relative path with forward slashes, and whether it is a folder."""
    name = entry.filename
    if not entry.flag_bits & 0x800:  # said to be in the old code page of DOS; macOS writes UTF-8 all the same
        with suppress(UnicodeError):
            name = name.encode("cp437").decode()
    name = name.replace("\\", "/")  # as .NET wrote it
    parts = [part for part in re.sub(r"^[A-Za-z]:", "", name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts), name.endswith("/")


def pictures_of(container: Container) -> tuple[list[str], list[str]]:
    """Tell pictures from what is none: by their names, and where those say nothing, by their first bytes.

    Returns:
        The names of pictures, sorted, and in words what else is there.

    Raises:
        UserError: there is no picture.
    """
    names, hidden, others = [], [], Counter[str]()
    for name in sorted(container.stamps):
        path = PurePosixPath(name)
        suffix = path.suffix.lower()
        if any(part.startswith(".") for part in path.parts):
            hidden += [name] if suffix in _PICTURE else []
        elif suffix in _PICTURE or (suffix not in _NO_PICTURE and _begins_like_one(container, name)):
            names.append(name)
        elif path.name != "dataset.json":
            others[suffix or "without a suffix"] += 1
    listed = ", ".join(f"{count:,} {suffix}" for suffix, count in others.most_common(5))
    if not names:
        raise UserError(
            f"data.path={container.path}: holds no images (found: {listed or 'nothing'}"
            f"{f', {len(hidden):,} hidden' if hidden else ''}). Give a folder or a zip file of images."
        )
    said = [f"not images: {listed}"] if others else []
    if hidden:
        said += [f"hidden, so left out: {len(hidden):,} image{'s' * (len(hidden) > 1)} such as {hidden[0]}"]
    return names, [*container.notices, *said]


def _begins_like_one(container: Container, name: str) -> bool:
    """Whether the first bytes are a picture's; also where they cannot be had, so that the file is named."""
    if name in container.special:
        return False
    try:
        with container.open(name) as file:
            return _MAGIC.match(file.read(32)) is not None
    except Exception:  # as in decoding: whatever the bytes lead a zip's decoder to
        return True


def natural(name: str) -> tuple[list[tuple[int, str]], str]:
    """A key that sorts numbers in names as numbers: 2 before 10, img9 before img10.

    Digits are compared as texts of a length, for there are names of digits that no integer is made of.
    """
    parts = re.split(r"([0-9]+)", name)
    return [(len(part.lstrip("0")), part.lstrip("0")) if k % 2 else (0, part) for k, part in enumerate(parts)], name


def displayable(names: Iterable[str]) -> tuple[str, ...]:
    """Names that any file and screen can take: bytes that are no UTF-8 are written as escapes."""
    return tuple(name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in names)
