"""The embedded hub for the JavaScript client (@huggingface/hub): the requests that it sends, and the client itself."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from hubplugin import localhub
from hubplugin.localhub.server import Running

EXPANDED = "&".join(
    f"expand={key}" for key in ("pipeline_tag", "private", "gated", "downloads", "likes", "lastModified")
)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Running]:
    with localhub.start(tmp_path / "hub") as running:
        yield running


def create(http: httpx.Client, **body: object) -> httpx.Response:
    """createRepo."""
    request = {"name": "js", "organization": "local", "type": "model", **body}
    return http.post("/api/repos/create", content=json.dumps(request), headers={"content-type": "application/json"})


def commit(http: httpx.Client, files: dict[str, bytes], branch: str = "main") -> None:
    """commit, with small files."""
    lines: list[dict[str, object]] = [{"key": "header", "value": {"summary": "m"}}]
    for path, data in files.items():
        content = base64.b64encode(data).decode()
        lines.append({"key": "file", "value": {"encoding": "base64", "path": path, "content": content}})
    url = f"/api/models/local/js/commit/{branch.replace('/', '%2F')}"
    http.post(url, content="\n".join(map(json.dumps, lines))).raise_for_status()


def test_its_access_token_begins_as_it_insists(hub: Running) -> None:
    assert hub.token.startswith("hf_") and localhub.add_user(hub.root, "other").startswith("hf_")
    assert (hub.root / "token").read_text().startswith("hf_")


def test_create_repo_with_files_and_licence(hub: Running, http: httpx.Client) -> None:
    file = {"encoding": "base64", "path": "x/y.txt", "content": base64.b64encode(b"hi").decode()}
    answer = create(http, license="mit", files=[file], visibility="private").json()
    assert answer["url"] == f"{hub.url}/local/js"
    assert http.get("/local/js/resolve/main/x/y.txt").content == b"hi"
    assert "license: mit" in http.get("/local/js/resolve/main/README.md").text
    assert create(http, name="other", license="asdf").json()["error"].count("'asdf'") == 1
    assert create(http, name="third", sdk="gradio", type="space").status_code == 200


def test_file_exists_and_file_download_info(http: httpx.Client) -> None:
    create(http)
    commit(http, {"model.safetensors": b"x", "a.txt": b"y"})
    for path in ("model.safetensors", "a.txt", ".gitattributes"):
        assert http.head(f"/local/js/raw/main/{path}").status_code == 200
        headers = {"range": "bytes=0-0", "accept": "application/vnd.xet-fileinfo+json, */*"}
        for how in ("raw", "resolve"):
            info = http.get(f"/local/js/{how}/main/{path}", headers=headers)
            assert info.status_code == 206 and info.headers["content-range"].startswith("bytes 0-0/")
            assert info.headers["etag"]
    for path in ("no", "a.txt/no"):
        missing = http.head(f"/local/js/raw/main/{path}")
        assert (missing.status_code, missing.headers["x-error-code"]) == (404, "EntryNotFound")


def test_create_branch_list_files_and_count_commits_without_escapes(http: httpx.Client) -> None:
    create(http)
    commit(http, {"d/a.txt": b"1"})
    for body in ({}, {"overwrite": True, "emptyBranch": True}, {"overwrite": True, "startingPoint": "main"}):
        http.post("/api/models/local/js/branch/feat%2Fx", json=body).raise_for_status()
    commit(http, {"d/b.txt": b"2"}, "feat/x")
    http.post("/api/models/local/js/commit/main?create_pr=1", content='{"key": "header", "value": {"summary": "p"}}')
    for revision, count, files in (("main", 2, 1), ("feat/x", 3, 2), ("refs/pr/1", 3, 1)):
        listed = http.get(f"/api/models/local/js/tree/{revision}/d?recursive=false&expand=true").raise_for_status()
        assert len(listed.json()) == files and all("lastCommit" in item for item in listed.json())
        counted = http.get(f"/api/models/local/js/commits/{revision}?limit=1").raise_for_status()
        assert counted.headers["x-total-count"] == str(count)
        pages, url = [], f"/api/models/local/js/commits/{revision}?limit=2"
        while url:
            page = http.get(url).raise_for_status()
            pages.append(len(page.json()))
            found = re.findall(r'<(https?:[/][/][^>]+)>;\s+rel="next"', page.headers.get("link", ""))  # its own pattern
            url = found[0] if found else ""
        assert sum(pages) == count and max(pages) <= 2


def test_list_models_by_task_and_tags_and_model_info(http: httpx.Client) -> None:
    create(http)
    commit(http, {"README.md": b"---\npipeline_tag: depth-estimation\ntags: [gguf, id]\n---\n"})
    create(http, name="other")

    def listed(query: str) -> list[str]:
        return [model["id"] for model in http.get(f"/api/models?limit=500&{query}&{EXPANDED}").json()]

    assert listed("pipeline_tag=depth-estimation") == listed("filter=gguf&filter=id") == ["local/js"]
    assert listed("author=local&sort=createdAt") == ["local/other", "local/js"]
    assert listed("sort=lastModified") == ["local/other", "local/js"]
    assert listed("inference_provider=together,replicate") == listed("pipeline_tag=fill-mask") == []
    refused = http.get(f"/api/models?limit=500&apps=mlx-lm&{EXPANDED}")
    assert refused.status_code == 501 and "apps" in refused.json()["error"]
    info = http.get(f"/api/models/local/js/revision/HEAD?{EXPANDED}&expand=sha&expand=siblings").json()
    assert info["pipeline_tag"] == "depth-estimation" and len(info["sha"]) == 40 and "cardData" not in info
    assert {"rfilename": ".gitattributes"} in info["siblings"]
    assert http.get("/api/models/local/no?expand[]=likes").status_code == 404


SCRIPT = """
import * as hub from "@huggingface/hub";
const o = { hubUrl: process.env.URL, accessToken: process.env.TOKEN };
const repo = { type: "model", name: "local/js" };
const check = (what, holds) => { if (!holds) throw new Error(what); };
const read = async (path, revision, raw) => (await hub.downloadFile({ ...o, repo, path, revision, raw }))?.text();
const all = async (generator) => {
  const found = [];
  for await (const item of generator) found.push(item);
  return found;
};
await hub.createRepo({ ...o, repo, license: "mit", files: [{ path: "x/y.txt", content: new Blob(["hi"]) }] });
check("files", (await read("x/y.txt")) === "hi" && (await read("README.md")).includes("license: mit"));
const header = JSON.stringify({ a: { dtype: "F32", shape: [2, 3], data_offsets: [0, 24] } });
const length = new Uint8Array(8); new DataView(length.buffer).setUint32(0, header.length, true);
const weights = new Blob([length, header, new Uint8Array(24)]);
const big = new Blob([new Uint8Array(3_000_000).map((_, index) => (index * 7919) >> 3)]);
for (const useXet of [true, false]) {
  const add = (path, content) => ({ operation: "addOrUpdate", path, content });
  const tiny = add(`${useXet}.dat`, new Blob(["\\0"]));
  const operations = [add("model.safetensors", weights), add(`big${useXet}.bin`, big), tiny];
  await hub.commit({ ...o, repo, title: `xet ${useXet}`, useXet, operations });
  const blob = await hub.downloadFile({ ...o, repo, path: `big${useXet}.bin` });
  const same = Buffer.compare(Buffer.from(await blob.arrayBuffer()), Buffer.from(await big.arrayBuffer())) === 0;
  check(`big ${useXet}`, same && (await read(".gitattributes")).includes(`${useXet}.dat filter=lfs`));
}
check("exists", await hub.fileExists({ ...o, repo, path: "model.safetensors" }));
check("exists not", !(await hub.fileExists({ ...o, repo, path: "no" })));
check("raw", (await read("model.safetensors", "main", true)).startsWith("version https://git-lfs"));
const metadata = await hub.parseSafetensorsMetadata({ ...o, repo, computeParametersCount: true });
check("parameters", metadata.parameterCount.F32 === 6);
check("commits", (await all(hub.listCommits({ ...o, repo, batchSize: 1 }))).length === 3);
await hub.createBranch({ ...o, repo, branch: "feat/x" });
await hub.createBranch({ ...o, repo, branch: "feat/x", overwrite: true, empty: true });
check("empty", (await read("x/y.txt", "feat/x")) === undefined);
await hub.createBranch({ ...o, repo, branch: "feat/x", overwrite: true, revision: "main" });
const operations = [{ operation: "addOrUpdate", path: "x/pr.bin", content: new Blob(["a\\0b"]) }];
const { pullRequestUrl } = await hub.commit({ ...o, repo, title: "PR", isPullRequest: true, operations });
check("pull request", pullRequestUrl.endsWith("/discussions/1"));
for (const revision of ["feat/x", "refs/pr/1"]) {
  const paths = (await all(hub.listFiles({ ...o, repo, revision, path: "x" }))).map((file) => file.path);
  check(`files of ${revision}`, paths.includes("x/y.txt") && paths.includes("x/pr.bin") === (revision === "refs/pr/1"));
  check(`commits of ${revision}`, (await hub.countCommits({ ...o, repo, revision })) >= 3);
}
const card = new Blob(["---\\npipeline_tag: text-generation\\nlicense: mit\\n---\\n"]);
const addCard = { operation: "addOrUpdate", path: "README.md", content: card };
await hub.commit({ ...o, repo, title: "card", operations: [addCard] });
check("task", (await all(hub.listModels({ ...o, search: { task: "text-generation" } }))).length === 1);
check("no task", (await all(hub.listModels({ ...o, search: { task: "fill-mask" } }))).length === 0);
const info = await hub.modelInfo({ ...o, name: "local/js", additionalFields: ["safetensors"] });
check("info", info.safetensors.total === 6 && info.task === "text-generation");
await hub.createCollection({ ...o, collection: { title: "T", namespace: "local", private: false } });
check("collections", (await all(hub.listCollections({ ...o, search: { owner: ["local"] } }))).length === 1);
check("no collections", (await all(hub.listCollections({ ...o, search: { item: ["models/local/js"] } }))).length === 0);
await hub.deleteFiles({ ...o, repo, paths: ["x/y.txt"] });
await hub.deleteBranch({ ...o, repo, branch: "feat/x" });
await hub.deleteRepo({ ...o, repo });
check("gone", !(await hub.repoExists({ ...o, repo })));
"""


@pytest.mark.slow
def test_the_real_client_does_all_of_it(hub: Running, tmp_path: Path) -> None:
    if not (shutil.which("node") and shutil.which("npm")):
        pytest.skip("node and npm are not here")
    (tmp_path / "package.json").write_text('{"type": "module"}')
    try:
        install = ["npm", "install", "--no-audit", "--no-fund", "@huggingface/hub@2.17.5"]
        done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    except subprocess.TimeoutExpired:
        pytest.skip("the package index does not answer")
    if done.returncode:
        pytest.skip(f"@huggingface/hub cannot be had: {done.stderr[-300:]}")
    (tmp_path / "test.mjs").write_text(SCRIPT)
    env = os.environ | {"URL": hub.url, "TOKEN": hub.token}
    done = subprocess.run(["node", "test.mjs"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-3000:]
