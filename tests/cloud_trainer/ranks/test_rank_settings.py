"""The options of ranks: refused without torchrun, and those that ranks refuse."""

from __future__ import annotations

import json
import os
import signal
import socket
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner

from adc_edge.cli import main
from adc_edge.cloud_trainer.ranks import command
from adc_edge.cloud_trainer.ranks.launch import Launch, launched
from adc_edge.cloud_trainer.ranks.settings import RankSettings
from adc_edge.cloud_trainer.settings import TrainerSettings
from adc_edge.config import chosen_options
from adc_edge.errors import SettingError
from adc_edge.storage.bundle import Bundle

LAUNCH = Launch(1, 2, 1, 2, 1, 0, "127.0.0.1", 29500, True)
ENVIRONMENT = {
    "TORCHELASTIC_RUN_ID": "none",
    "RANK": "1",
    "WORLD_SIZE": "2",
    "LOCAL_RANK": "1",
    "LOCAL_WORLD_SIZE": "2",
    "GROUP_WORLD_SIZE": "1",
    "TORCHELASTIC_RESTART_COUNT": "0",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "29500",
}


def settings(**more: Any) -> TrainerSettings:
    return TrainerSettings(**{"bundle": Path("b"), "bind": "tcp://127.0.0.1:5700", "run": Path("r"), **more})


def check(launch: Launch | None = LAUNCH, **more: Any) -> None:
    given = settings(**more)
    given.ranks.check(given, launch)


def test_settings_of_the_trainer_become_those_of_its_ranks() -> None:
    given = settings(sync=8, round_wait=0.5, place="key", advertise="tcp://h:1", rank_timeout=60.0, public_ranks=True)
    assert given.ranks == RankSettings(8, 0.5, "key", "tcp://h:1", 60.0, True)
    assert settings().ranks == RankSettings()


@pytest.mark.parametrize(
    ("option", "more"),
    [
        ("--sync", {"sync": 4}),
        ("--round-wait", {"round_wait": 1.0}),
        ("--place", {"place": "name"}),
        ("--advertise", {"advertise": "tcp://h:1"}),
        ("--rank-timeout", {"rank_timeout": 10.0}),
        ("--public-ranks", {"public_ranks": True}),
    ],
)
def test_an_option_of_ranks_is_refused_without_torchrun(option: str, more: dict[str, Any]) -> None:
    check(**more)
    with pytest.raises(SettingError, match=f"{option} without torchrun"):
        check(None, **more)


@pytest.mark.parametrize(
    ("option", "more"),
    [
        ("--merge-passes each", {"merge_passes": "each"}),
        ("--mode averaged", {"mode": "averaged"}),
        ("--mode sequential", {"mode": "sequential"}),
        ("--data digits", {"data": "digits"}),
        ("--serve-only", {"serve_only": True}),
        ("--one-session", {"one_session": True}),
        ("--fresh", {"fresh": True}),
    ],
)
def test_an_option_that_ranks_cannot_keep_is_refused_under_torchrun(option: str, more: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"{option} under torchrun") as raised:
        check(**more)
    assert str(raised.value).count("\n") == 2
    check(None, **more)


@pytest.mark.parametrize("more", [{"merge_passes": "sum"}, {"mode": "frozen"}, {"devices": 3}, {"checkpoint_every": 5}])
def test_an_option_that_ranks_keep_is_none_to_refuse(more: dict[str, Any]) -> None:
    check(**more)


def test_ranks_need_a_run_directory() -> None:
    with pytest.raises(SettingError, match="without --run"):
        check(run=None)
    check(None, run=None)


def test_ranks_need_addresses_that_devices_can_be_told() -> None:
    with pytest.raises(SettingError, match=r"add --advertise"):
        check(bind="tcp://*:5700")
    check(bind="tcp://*:5700", advertise="tcp://10.0.0.1:5700")
    with pytest.raises(SettingError, match="name a host instead of"):
        check(bind="tcp://*:5700", advertise="tcp://*:5700")
    wrongs: tuple[dict[str, Any], ...] = ({"bind": "tcp://127.0.0.1:65535"}, {"advertise": "tcp://h:65535"})
    for wrong in wrongs:
        with pytest.raises(SettingError, match="ports up to 65535"):
            check(**wrong)


def test_only_rank_0_needs_the_run_to_be_free_and_each_rank_its_own_port(
    bundle_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as first:
        first.bind(("127.0.0.1", 0))
        port = first.getsockname()[1]  # rank 0's: in use, as by a rank 0 that listens already
        given = TrainerSettings(bundle_dir, f"tcp://127.0.0.1:{port}", run=tmp_path / "run")
        first.listen()
        if port < 65535:
            with socket.socket() as trial:
                if trial.connect_ex(("127.0.0.1", port + 1)):  # nobody is there
                    given.check()
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("LOCAL_RANK", "0")
        with pytest.raises(SettingError, match=f"port {port} is in use"):
            given.check()


@pytest.mark.parametrize(("word", "steps"), [("every", 1), ("1", 1), ("2", 2), ("500", 500)])
def test_sync_takes_a_number_of_steps_or_every(word: str, steps: int) -> None:
    done = CliRunner().invoke(main, ["trainer", "--bundle", "b", "--sync", word, "--dump-config"])
    assert f"sync = {steps}\n" in done.stdout


@pytest.mark.parametrize("word", ["0", "-1", "each", "1.5", ""])
def test_sync_takes_nothing_else(word: str) -> None:
    done = CliRunner().invoke(main, ["trainer", "--bundle", "b", "--sync", word])
    assert done.exit_code == 2
    assert "--sync" in done.output


def test_the_options_of_ranks_survive_a_file(tmp_path: Path) -> None:
    words = ["trainer", "--bundle", "b", "--sync", "8", "--place", "key", "--round-wait", "0.1"]
    first = CliRunner().invoke(main, [*words, "--dump-config"])
    assert first.exit_code == 0, first.output
    (tmp_path / "options.toml").write_text(first.stdout)
    second = CliRunner().invoke(main, ["trainer", "--config", str(tmp_path / "options.toml"), "--dump-config"])
    assert second.stdout == first.stdout
    assert "sync = 8" in first.stdout


def test_the_settings_can_be_written_down() -> None:
    written = msgspec.to_builtins(settings(sync=4, place="key"), enc_hook=str)
    assert (written["sync"], written["place"]) == (4, "key")


def test_a_run_of_ranks_goes_on_without_them_by_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The options of ranks that the run has kept are passed over, and kept for ranks that may go on later."""
    seen: list[tuple[TrainerSettings, dict[str, Any]]] = []

    def take(given: TrainerSettings) -> None:
        seen.append((given, chosen_options(click.get_current_context())))
        given.ranks.check(given, launched())
        raise SettingError("checked", "the end", "")

    monkeypatch.setattr(TrainerSettings, "check", take)
    bind = ["--bind", "tcp://0.0.0.0:5700", "--advertise", "tcp://10.0.0.1:5700"]
    ranks = ["--sync", "4", "--round-wait", "0.5", "--place", "key", "--rank-timeout", "60", "--public-ranks"]
    words = ["trainer", "--bundle", "b", "--run", str(tmp_path / "r"), *bind, *ranks]
    begun = CliRunner().invoke(main, words, env=ENVIRONMENT)
    assert "checked" in begun.output, begun.output
    kept = seen[-1][1]
    (tmp_path / "r").mkdir(exist_ok=True)
    (tmp_path / "r" / "settings.json").write_text(json.dumps({"fixed": {"role": "trainer"}, "options": kept}))

    resume = ["trainer", "--resume", str(tmp_path / "r")]
    alone = CliRunner().invoke(main, resume)
    assert "checked" in alone.output, alone.output
    assert seen[-1][0].ranks == RankSettings()
    assert seen[-1][0].bind == "tcp://0.0.0.0:5700"
    assert seen[-1][1] == kept
    CliRunner().invoke(main, resume, env=ENVIRONMENT)
    assert seen[-1][0].ranks == RankSettings(4, 0.5, "key", "tcp://10.0.0.1:5700", 60.0, True)
    typed = CliRunner().invoke(main, [*resume, "--sync", "8"])
    assert "--sync without torchrun" in typed.output


def test_a_signal_that_comes_early_is_seen_by_the_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []

    def told(given: TrainerSettings) -> None:
        os.kill(os.getpid(), signal.SIGTERM)  # torchrun hands the same Ctrl-C on: it comes twice
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(TrainerSettings, "check", told)
    monkeypatch.setattr(command, "run_rank", lambda *arguments: seen.append(arguments[-1]()))
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        ended = CliRunner().invoke(main, ["trainer", "--bundle", "b", "--run", str(tmp_path / "r")], env=ENVIRONMENT)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert ended.exit_code == 0, ended.output
    assert seen == [True]


def test_there_may_be_as_many_devices_as_all_ranks_have_room_for(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = settings(bundle=bundle.path, run=tmp_path / "run", bind="tcp://127.0.0.1:*", devices=4, max_devices=2)
    with pytest.raises(SettingError, match="--max-devices 2"):
        msgspec.structs.replace(given, insecure=True).check()
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    assert given.check().digest == bundle.digest
    with pytest.raises(SettingError, match="--devices 5 and --max-devices 2"):
        msgspec.structs.replace(given, devices=5).check()
