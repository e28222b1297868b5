"""Errors of our own code are one message, from whichever process; W&B without a network is told in seconds."""

import os
import re
import socket
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader, Dataset

import lightning_modules
from datamodules.batches import FlowStackBatch
from lightning_modules import wandb_workspace
from lightning_modules.cli import FlowFoolCLI, main
from lightning_modules.wandb_server import check_wandb, unreachable

ROOT = Path(lightning_modules.__file__).parents[1]
PROXIES = [case(f"{name}_proxy") for name in ("http", "https", "all") for case in (str.lower, str.upper)]


@pytest.fixture(autouse=True)
def as_a_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("FLOWFOOL_TRACEBACK", "WANDB_MODE", "WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_DIR", *PROXIES):
        monkeypatch.delenv(name, raising=False)
    for name in ("PL_GLOBAL_SEED", "WANDB_MODE"):  # what the command line sets is taken back
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "wandb-config"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setattr(sys, "argv", ["lightning_modules"])


def ours(source: str) -> Callable[[], None]:
    """A function `f` in a file of `attacks` that runs by `python -m`, as far as a traceback tells."""
    space: dict = {"__name__": "__main__", "torch": torch}
    exec(compile(source, str(OURS), "exec"), space)
    return space["f"]


OURS = ROOT / "attacks" / "one_shot.py"


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], Callable[[], None]]]:
    """Compiles a function whose file is one of ours, and whose source lines a traceback finds."""
    import linecache

    def make(source: str) -> Callable[[], None]:
        linecache.cache[str(OURS)] = (len(source), None, source.splitlines(keepends=True), str(OURS))
        return ours(source)

    yield make
    linecache.checkcache()
    linecache.cache.pop(str(OURS), None)


def told(function: Callable[[], object]) -> str:
    with pytest.raises(SystemExit) as stopped:
        main([], lambda args: function())
    assert isinstance(stopped.value.code, str)  # Python prints it and exits with 1
    return stopped.value.code


@pytest.mark.parametrize(
    "error",
    ["IndexError", "KeyError", "FloatingPointError", "RuntimeError", "TypeError", "NotImplementedError", "ValueError"],
)
def test_what_our_code_raises_is_one_message(fails: Callable, error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    function = fails(f"def f():\n    raise {error}('clip 7 has no flow: compute it')\n")
    assert told(function) == "\nError: clip 7 has no flow: compute it\n(FLOWFOOL_TRACEBACK=1 shows where it came from)"
    monkeypatch.setenv("FLOWFOOL_TRACEBACK", "1")
    with pytest.raises(eval(error), match="clip 7"):
        main([], lambda args: function())


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def f():\n    return ['left'][3]\n", r"IndexError: list index out of range \(attacks/one_shot\.py, line 2\)"),
        ("def f():\n    return {'left': 0}['up']\n", r"KeyError: up \(attacks/one_shot\.py, line 2\)"),
        ("def f():\n    return torch.zeros(3)[5]\n", r"IndexError: index 5 is out of bounds .* line 2\)"),
    ],
)
def test_where_our_code_stumbles_is_one_message_and_the_traceback_is_kept(
    fails: Callable, source: str, shown: str, tmp_path: Path
) -> None:
    """A defect after days: nobody wants to run it again for the traceback."""
    message = told(fails(source))
    assert re.match(rf"\nError: {shown}\n\(a defect; its traceback is in \S+\)$", message)
    kept = Path(message.rpartition(" in ")[2].rstrip(")"))
    assert kept.parent == tmp_path and "Traceback (most recent call last)" in kept.read_text()


def test_what_others_raise_keeps_its_traceback() -> None:
    for function in (lambda: int("seven"), lambda: torch.ones(2) @ torch.ones(3), lambda: [][0]):
        with pytest.raises((ValueError, RuntimeError, IndexError)):
            main([], lambda args, function=function: function())


def test_the_trainers_and_the_systems_refusals_are_one_message() -> None:
    def refuse() -> None:
        raise MisconfigurationException("two loggers")

    assert "Error: two loggers" in told(refuse)
    assert "nowhere" in told(Path("/nowhere").read_text)


class Fails(Dataset[int]):
    """A dataset that runs `function` in the worker."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function = function

    def __len__(self) -> int:
        return 2

    def __getitem__(self, index: int) -> int:
        self.function()
        return index


def in_a_worker(function: Callable[[], object]) -> str:
    """What is told of an error that torch carries out of a worker, without the worker."""

    def carried() -> None:
        try:
            function()
        except Exception:
            ExceptionWrapper(where="in DataLoader worker process 0").reraise()

    return told(carried)


def test_a_real_workers_error_is_its_message_alone(fails: Callable) -> None:
    function = fails("def f():\n    raise IndexError('v_Rowing_g01: no frame 7')\n")
    message = told(lambda: list(DataLoader(Fails(function), num_workers=1, multiprocessing_context="fork")))
    assert message == "\nError: v_Rowing_g01: no frame 7\n(FLOWFOOL_TRACEBACK=1 shows where it came from)"


@pytest.mark.parametrize("error", ["ValueError", "IndexError", "KeyError", "RuntimeError", "FloatingPointError"])
def test_a_workers_error_is_its_message_alone(fails: Callable, error: str) -> None:
    message = in_a_worker(fails(f"def f():\n    raise {error}(\n        'v_Rowing_g01: cut off\\n  at 3 s')\n"))
    assert message == "\nError: v_Rowing_g01: cut off\n  at 3 s\n(FLOWFOOL_TRACEBACK=1 shows where it came from)"


def test_a_workers_defect_names_its_line(fails: Callable) -> None:
    message = in_a_worker(fails("def f():\n    return ['left'][3]\n"))
    assert message.startswith("\nError: IndexError: list index out of range (attacks/one_shot.py, line 2)\n(a defect")


def test_a_workers_missing_file_and_own_kinds_of_errors(tmp_path: Path) -> None:
    from lightning_modules.checkpoints import read_state

    assert in_a_worker(lambda: read_state(tmp_path / "none.pt")).startswith(f"\nError: no checkpoint at {tmp_path}")
    assert in_a_worker((tmp_path / "none").read_text).startswith("\nError: [Errno 2] No such file or directory: ")
    (tmp_path / "bad.pt").write_text("no weights")
    message = in_a_worker(lambda: read_state(tmp_path / "bad.pt"))
    assert message.startswith(f"\nError: {tmp_path}/bad.pt cannot be read as a checkpoint") and "File" not in message


def test_a_workers_foreign_error_keeps_its_traceback() -> None:
    with pytest.raises(ValueError, match="Traceback"):
        in_a_worker(lambda: int("seven"))


def test_a_worker_that_was_killed_says_what_helps() -> None:
    killed = Fails(lambda: os.kill(os.getpid(), 9))
    message = told(lambda: list(DataLoader(killed, num_workers=1, multiprocessing_context="fork")))
    assert "lower num_workers" in message and "Traceback" not in message


def test_an_error_with_several_arguments_and_one_with_a_cause(fails: Callable) -> None:
    """torch makes a RuntimeError of what it cannot build from a text; jsonargparse puts its own errors before ours."""
    source = """
class Twice(ValueError):
    def __init__(self, first, second):
        super().__init__(f'{first}, {second}')
def f():
    raise Twice('v_Rowing_g01', 'cut off')
"""
    assert in_a_worker(fails(source)).startswith("\nError: v_Rowing_g01, cut off\n")
    function = fails("def f():\n    raise ValueError('no such split')\n")

    def wrapped() -> None:
        try:
            function()
        except ValueError as error:
            raise RuntimeError("Problem with given class_path") from error

    assert in_a_worker(wrapped).startswith("\nError: no such split\n")


def test_a_process_pools_error_is_its_message_alone(fails: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    import multiprocessing

    global _in_pool
    _in_pool = fails("def f():\n    raise KeyError('v_Rowing_g01: no flow')\n")

    def work() -> None:
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            pool.submit(_call_in_pool).result()

    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or type(sys)(__name__))
    monkeypatch.setattr(sys.modules[__name__], "_call_in_pool", _call_in_pool, raising=False)
    assert told(work).startswith("\nError: v_Rowing_g01: no flow\n")


def _in_pool() -> None: ...


def _call_in_pool() -> None:
    _in_pool()


@pytest.mark.parametrize("name", ["CommError", "AuthenticationError", "UsageError"])
def test_wandbs_errors_are_one_message_with_the_way_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    wandb = pytest.importorskip("wandb")

    def fail(self: FlowFoolCLI, subcommand: str) -> None:
        raise getattr(wandb.errors, name)("Run initialization has timed out after 90.0 sec")

    monkeypatch.setattr("pytorch_lightning.cli.LightningCLI._run_subcommand", fail)
    with pytest.raises(SystemExit) as stopped:
        main([], lambda args: FlowFoolCLI._run_subcommand(FlowFoolCLI.__new__(FlowFoolCLI), "fit"))
    assert re.match(r"\nError: .*has timed out after 90.*WANDB_MODE=offline.*wandb sync", str(stopped.value.code))


@pytest.fixture
def closed_port() -> int:
    """A port of this machine where nothing listens."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


@pytest.fixture
def open_port() -> Iterator[int]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


def with_key(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{port}")


def test_a_server_that_answers_is_reached(monkeypatch: pytest.MonkeyPatch, open_port: int) -> None:
    with_key(monkeypatch, open_port)
    assert unreachable() is None
    check_wandb()


def test_a_server_that_does_not_is_named_with_the_way_out(monkeypatch: pytest.MonkeyPatch, closed_port: int) -> None:
    with_key(monkeypatch, closed_port)
    pattern = rf"127\.0\.0\.1:{closed_port} \(.*refused.*WANDB_MODE=offline.*wandb sync"
    with pytest.raises(ConnectionError, match=pattern):
        check_wandb()


@pytest.mark.parametrize("proxy", PROXIES)
def test_behind_a_proxy_nothing_is_judged(monkeypatch: pytest.MonkeyPatch, closed_port: int, proxy: str) -> None:
    with_key(monkeypatch, closed_port)
    monkeypatch.setenv(proxy, "http://proxy.example:3128")
    check_wandb()


@pytest.mark.parametrize("mode", ["offline", "disabled", "dryrun"])
def test_offline_nothing_is_asked(monkeypatch: pytest.MonkeyPatch, closed_port: int, mode: str, tmp_path: Path) -> None:
    with_key(monkeypatch, closed_port)
    monkeypatch.setenv("WANDB_MODE", mode)
    check_wandb()
    monkeypatch.delenv("WANDB_MODE")
    (tmp_path / "wandb-config").mkdir()
    (tmp_path / "wandb-config" / "settings").write_text(f"[default]\nmode = {mode}\n")  # `wandb offline`
    check_wandb()


def test_the_server_of_wandb_login_is_asked(monkeypatch: pytest.MonkeyPatch, open_port: int, tmp_path: Path) -> None:
    """A server of one's own, whose address `wandb login --host` has written down."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    (tmp_path / "wandb-config").mkdir()
    (tmp_path / "wandb-config" / "settings").write_text(f"[default]\nbase_url = http://127.0.0.1:{open_port}\n")
    check_wandb()


def test_a_name_that_is_looked_up_for_ever_ends_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_modules.wandb_server.SECONDS", 0.2)

    def never(*args: object, **options: object) -> None:
        time.sleep(3)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", never)
    start = time.monotonic()
    assert re.match(r"api\.wandb\.ai:443 \(no answer in", unreachable() or "")
    assert time.monotonic() - start < 2


class SlowData(pl.LightningDataModule):
    """Stands for the extraction of flow: leaves a file when it is asked to prepare."""

    num_classes = 2

    def __init__(self, *, record: str) -> None:
        super().__init__()
        self.record = Path(record)

    def prepare_data(self) -> None:
        self.record.touch()

    def train_dataloader(self) -> DataLoader:
        flow = FlowStackBatch(torch.randn(4, 20, 32, 32), torch.tensor([0, 1, 0, 1]), torch.arange(4))
        return DataLoader([flow], batch_size=None)


def run_config(tmp_path: Path, **logger: object) -> Path:
    options = {"save_dir": str(tmp_path), **logger}
    network = {"class_path": "lightning_modules.classifiers.resnet.ResNet", "init_args": {"depth": 18}}
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.001}}
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "log_every_n_steps": 1}
    content = {
        "model": {
            "class_path": "lightning_modules.flow_classification.FlowClassification",
            "init_args": {"classifier": network, "optimizer": optimizer},
        },
        "data": {"class_path": "test_errors.SlowData", "init_args": {"record": str(tmp_path / "worked")}},
        "trainer": {
            **{"accelerator": "cpu", "devices": 1, "max_epochs": 1, **quiet},
            "logger": {"class_path": "pytorch_lightning.loggers.WandbLogger", "init_args": options},
        },
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_that_cannot_record_stops_before_any_work(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    with_key(monkeypatch, closed_port)
    start = time.monotonic()
    command = ["fit", "--config", str(run_config(tmp_path)), f"--trainer.default_root_dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert time.monotonic() - start < 20
    assert f"127.0.0.1:{closed_port}" in str(stopped.value.code) and "WANDB_MODE=offline" in str(stopped.value.code)
    assert not (tmp_path / "worked").exists() and not (tmp_path / "run").exists()
    monkeypatch.setenv("WANDB_MODE", "offline")  # the advice
    main(command)
    import wandb

    wandb.finish()
    assert (tmp_path / "worked").exists() and (tmp_path / "run" / "final.ckpt").exists()


def test_a_logger_that_is_offline_by_its_own_option_needs_no_server(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    with_key(monkeypatch, closed_port)
    config = run_config(tmp_path, offline=True)
    main(["fit", "--config", str(config), f"--trainer.default_root_dir={tmp_path / 'run'}"])
    import wandb

    wandb.finish()
    assert (tmp_path / "run" / "final.ckpt").exists()


def test_a_workspace_without_a_network_says_so(
    monkeypatch: pytest.MonkeyPatch, closed_port: int, tmp_path: Path
) -> None:
    with_key(monkeypatch, closed_port)
    monkeypatch.setattr(wandb_workspace, "workspace", lambda *args, **options: None)
    message = told(lambda: wandb_workspace.save(tmp_path))
    assert f"cannot be reached: 127.0.0.1:{closed_port}" in message and "WANDB_MODE" not in message
