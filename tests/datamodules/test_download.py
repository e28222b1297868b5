import shutil
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from datamodules import download
from datamodules.__main__ import main

CONFIGS = Path(__file__).parents[2] / "configs"


class Breaking(BaseHTTPRequestHandler):
    """Serves files with ranges; breaks off after `server.piece` bytes of each answer, if that is set."""

    def do_GET(self) -> None:
        path = self.server.folder / self.path.lstrip("/")
        self.server.asked.append(self.headers.get("Range"))
        if not path.is_file():
            self.send_error(404)
            return
        data, start = path.read_bytes(), 0
        tag = f'"{hash(data)}"'
        wanted = self.headers.get("Range")
        if wanted and self.server.ranges and self.headers.get("If-Range", tag) == tag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(data):
                self.send_error(416)
                return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(data) - start))
        self.send_header("ETag", tag)
        self.end_headers()
        end = len(data) if self.server.piece is None else start + self.server.piece
        self.wfile.write(data[start:end])
        self.server.sent += len(data[start:end])

    def log_message(self, *args) -> None:
        pass


@pytest.fixture
def server(tmp_path):
    folder = tmp_path / "served"
    folder.mkdir()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Breaking)
    server.folder, server.piece, server.ranges, server.asked, server.sent = folder, None, True, [], 0
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def content(size: int = 300_000) -> bytes:
    return bytes(i * i % 251 for i in range(size))


def test_a_download_that_breaks_off_goes_on(server, tmp_path):
    (server.folder / "file").write_bytes(content())
    server.piece = 70_000
    target = download.fetch(f"{server.address}/file", tmp_path / "got", wait_s=0)
    assert target.read_bytes() == content()
    assert server.asked == [None, *(f"bytes={70_000 * k}-" for k in range(1, 5))]
    assert server.sent == len(content())  # nothing twice
    assert sorted(path.name for path in tmp_path.iterdir()) == ["got", "served"]
    download.fetch(f"{server.address}/file", target)
    assert len(server.asked) == 5  # what is whole is not asked for again


def test_a_killed_download_goes_on_at_the_next_call(server, tmp_path):
    (server.folder / "file").write_bytes(content())
    server.piece = 0
    (tmp_path / "got.part").write_bytes(b"of another address")
    with pytest.raises(ConnectionError, match=r"broke off; 0 bytes are kept in .*got\.part"):
        download.fetch(f"{server.address}/file", tmp_path / "got", tries=2, wait_s=0)
    server.piece = 100_000
    with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.time, "sleep", lambda _: (_ for _ in ()).throw(RuntimeError("killed")))
        download.fetch(f"{server.address}/file", tmp_path / "got")
    assert (tmp_path / "got.part").read_bytes() == content()[:100_000]
    server.piece = None
    assert download.fetch(f"{server.address}/file", tmp_path / "got").read_bytes() == content()
    assert server.asked[-1] == "bytes=100000-"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_file_that_changed_or_a_server_without_ranges_starts_again(server, tmp_path, ranges):
    (server.folder / "file").write_bytes(content())
    server.piece = 100_000
    with pytest.raises(RuntimeError), pytest.MonkeyPatch.context() as patch:
        patch.setattr(download.time, "sleep", lambda _: (_ for _ in ()).throw(RuntimeError("killed")))
        download.fetch(f"{server.address}/file", tmp_path / "got")
    server.piece, server.ranges = None, ranges
    changed = content()[::-1] if ranges else content()
    (server.folder / "file").write_bytes(changed)
    assert download.fetch(f"{server.address}/file", tmp_path / "got").read_bytes() == changed


def test_a_missing_file_is_said_at_once(server, tmp_path):
    with pytest.raises(ConnectionError, match=r"/absent: .*404.*another address"):
        download.fetch(f"{server.address}/absent", tmp_path / "got", wait_s=60)


def archives(server, small_tree: Path) -> list[str]:
    for folder, name in (("UCF-101", "videos.zip"), ("ucfTrainTestlist", "lists.zip")):
        with zipfile.ZipFile(server.folder / name, "w") as archive:
            for path in sorted((small_tree / folder).rglob("*.*")):
                archive.write(path, path.relative_to(small_tree))
    return [f"--videos={server.address}/videos.zip", f"--lists={server.address}/lists.zip"]


def test_a_dataset_is_fetched_unpacked_and_checked(server, small_tree, tmp_path, monkeypatch, capsys):
    options = archives(server, small_tree)
    server.piece = 50_000
    monkeypatch.setattr(download.time, "sleep", lambda _: None)
    root = tmp_path / "fetched"
    monkeypatch.setenv("UCF101", str(root))
    command = ["data", f"--dataset={CONFIGS / 'paper' / 'dataset.yaml'}", f"--fetch={root}", *options]
    main(command)
    assert "9 clips, all of them can be decoded" in capsys.readouterr().out
    assert sorted(path.name for path in root.iterdir()) == ["UCF-101", "ucfTrainTestlist"]
    asked = len(server.asked)
    main(command)
    assert len(server.asked) == asked  # it is there


def test_a_damaged_archive_is_named(server, small_tree, tmp_path):
    options = archives(server, small_tree)
    (server.folder / "lists.zip").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"lists\.zip cannot be unpacked"):
        download.download_ucf101(tmp_path / "got", videos=options[0][9:], lists=options[1][8:])
    with zipfile.ZipFile(server.folder / "lists.zip", "w") as archive:
        archive.writestr("other/file", "text")
    (tmp_path / "got" / "lists.zip").unlink()
    with pytest.raises(ValueError, match=r"lists\.zip holds no folder ucfTrainTestlist/"):
        download.download_ucf101(tmp_path / "got", videos=options[0][9:], lists=options[1][8:])


def test_a_rar_needs_a_program(tmp_path, monkeypatch):
    (tmp_path / "UCF101.rar").write_bytes(b"Rar!")
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match=r"UCF101\.rar: install one of unrar, bsdtar, 7z"):
        download.unpack(tmp_path / "UCF101.rar", tmp_path / "out")


def test_a_rar_is_unpacked_by_the_program_that_is_there(tmp_path, monkeypatch):
    """A stand-in for unrar on the path, that is called as unrar is."""
    program = tmp_path / "bin" / "unrar"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\n[ "$1 $2 $3" = "x -idq -o+" ] && mkdir UCF-101 && cp "$4" UCF-101/\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:/usr/bin:/bin")
    (tmp_path / "UCF101.rar").write_bytes(b"Rar!")
    download.unpack(tmp_path / "UCF101.rar", tmp_path / "out")
    assert (tmp_path / "out" / "UCF-101" / "UCF101.rar").is_file()
    program.write_text("#!/bin/sh\necho CRC failed >&2; exit 3\n")
    with pytest.raises(ValueError, match=r"UCF101\.rar cannot be unpacked by unrar: CRC failed"):
        download.unpack(tmp_path / "UCF101.rar", tmp_path / "out")
