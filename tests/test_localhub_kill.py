"""kill -9 during uploads by the official client: no confirmed commit is lost, and no commit is incomplete."""

import hashlib
import random
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest
from localhub_helpers import client_env

TOKEN = "only-for-this-test"
SERVER = """
import sys
from pathlib import Path
from hubplugin import localhub
localhub.serve(Path(sys.argv[1]), port=0)
"""
# Every commit replaces all three files, so a complete commit has the same number in all of them.
UPLOADER = """
import hashlib, random, sys
from huggingface_hub import CommitOperationAdd, HfApi
api, number = HfApi(), int(sys.argv[1])
api.create_repo("local/m", exist_ok=True)
while True:
    number += 1
    files = {
        "number.txt": b"%d" % number,
        "weights.bin": random.Random(number).randbytes(700_000),
        "deep/other.bin": b"\\0" + random.Random(-number).randbytes(200_000),
    }
    adds = [CommitOperationAdd(path, data) for path, data in files.items()]
    print(number, api.create_commit("local/m", adds, commit_message=f"number {number}").oid, flush=True)
"""


def start_server(root: Path, env: dict[str, str]) -> tuple[subprocess.Popen[str], str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER, str(root)],
        env=env | {"HUBPLUGIN_HUB_TOKEN": TOKEN},
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    return server, server.stderr.readline().split()[1]


def kill_in_the_middle(root: Path, home: Path, first: int, xet: bool, rng: random.Random) -> dict[int, str]:
    """Upload from number `first` on and kill the hub after some commits; number -> oid of each confirmed commit."""
    server, url = start_server(root, client_env(home, "", None))
    uploader = subprocess.Popen(
        [sys.executable, "-c", UPLOADER, str(first)],
        env=client_env(home, url, TOKEN, xet),
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert uploader.stdout is not None
        lines = [uploader.stdout.readline() for _ in range(rng.randint(1, 4))]
        time.sleep(rng.uniform(0, 0.15))  # this moment is what the test varies
        server.kill()
        server.wait()
        uploader.kill()
        lines += uploader.stdout.read().splitlines()
    finally:
        for process in (server, uploader):
            process.kill()
            process.wait()
    return {int(line.split()[0]): line.split()[1] for line in lines if len(line.split()) == 2}


def numbers_of_complete_commits(http: httpx.Client) -> dict[str, int]:
    """oid -> number of every commit of main. Reads each one back and checks that it is complete."""
    numbers = {}
    for commit in http.get("/api/models/local/m/commits/main").raise_for_status().json()[:-1]:
        tree = http.get(f"/api/models/local/m/tree/{commit['id']}?recursive=true").raise_for_status().json()
        files = {item["path"]: item for item in tree if item["type"] == "file" and item["path"] != ".gitattributes"}
        data = {path: http.get(f"/local/m/resolve/{commit['id']}/{path}").raise_for_status().content for path in files}
        number = int(data["number.txt"])
        assert data == {
            "number.txt": b"%d" % number,
            "weights.bin": random.Random(number).randbytes(700_000),
            "deep/other.bin": b"\0" + random.Random(-number).randbytes(200_000),
        }
        for path, item in files.items():
            assert item.get("lfs", {"oid": ""})["oid"] in ("", hashlib.sha256(data[path]).hexdigest())
        numbers[commit["id"]] = number
    return numbers


def survive(tmp_path: Path, rounds: int) -> None:
    rng = random.Random(0)
    confirmed: dict[int, str] = {}
    for round_ in range(rounds):
        first = 100 * round_
        confirmed |= kill_in_the_middle(tmp_path / "hub", tmp_path, first, xet=round_ % 2 == 0, rng=rng)
    assert len(confirmed) >= rounds
    server, url = start_server(tmp_path / "hub", client_env(tmp_path, "", None))
    try:
        with httpx.Client(base_url=url, headers={"authorization": f"Bearer {TOKEN}"}, trust_env=False) as http:
            numbers = numbers_of_complete_commits(http)
            head = http.get("/api/models/local/m").json()["sha"]
    finally:
        server.kill()
        server.wait()
    assert {number: oid for oid, number in numbers.items() if number in confirmed} == confirmed
    assert next(iter(numbers)) == head


def test_no_answered_commit_is_lost_and_none_is_half_after_two_kills(tmp_path: Path) -> None:
    survive(tmp_path, rounds=2)


@pytest.mark.slow
def test_no_answered_commit_is_lost_and_none_is_half_after_many_kills(tmp_path: Path) -> None:
    survive(tmp_path, rounds=14)
