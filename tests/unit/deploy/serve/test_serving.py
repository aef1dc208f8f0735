"""Jobs of a running server: results, refusals, restarts."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import SimpleITK
from running_server import LIMITS, Served, gzipped_nifti, raw_request, serving

from segwright import api
from segwright.core.errors import ConfigError
from segwright.core.files.locks import LockHeldError
from segwright.deploy.serve.client import Client, ServerError

PAGE = Path(__file__).parents[4] / "docs" / "how-to" / "serve.md"
UNKNOWN = "0" * 32


def labels(file: Path) -> Any:
    image = SimpleITK.ReadImage(str(file))
    return SimpleITK.GetArrayFromImage(image), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def require_same(first: Path, second: Path) -> None:
    (one, *grid), (other, *other_grid) = labels(first), labels(second)
    np.testing.assert_array_equal(one, other)
    assert grid == other_grid


@pytest.fixture(scope="module")
def expected(served: Served, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `predict` writes for the image."""
    folder = tmp_path_factory.mktemp("expected")
    output = api.predict(served.model, served.image, folder, device="cpu")[0].output
    assert np.unique(labels(output)[0]).tolist() == [0, 1, 2]
    return output


def post(served: Served, files: list[tuple[str, str, bytes]], path: str = "/v1/jobs", **fields: str) -> tuple[int, Any]:
    """Send files as (field, name, content); return the status and the JSON document."""
    boundary = "xxBOUNDARYxx"
    parts = [f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
             for name, value in fields.items()]  # fmt: skip
    for field, name, content in files:
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n\r\n'
        parts.append(head.encode() + content + b"\r\n")
    body = b"".join(parts) + f"--{boundary}--\r\n".encode()
    return request(served, "POST", path, body, {"Content-Type": f"multipart/form-data; boundary={boundary}"})


def request(
    served: Served, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(served.address).netloc, timeout=20)
    connection.request(method, path, body, headers or {})
    answer = connection.getresponse()
    return answer.status, json.loads(answer.read())


def zipped(folder: Path, **files: bytes) -> bytes:
    file = folder / "x.zip"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as stream:
        for name, content in files.items():
            stream.writestr(name, content)
    return file.read_bytes()


def test_a_job_gives_what_predict_gives(served: Served, expected: Path, tmp_path: Path) -> None:
    status = served.client.predict([served.image], tmp_path / "labels.nii.gz")
    assert (status["state"], status["progress"], status["place"]) == ("done", 1.0, None)
    require_same(tmp_path / "labels.nii.gz", expected)
    assert list((served.jobs / "jobs").iterdir()) == []


def test_the_page_of_the_documentation_runs(
    served: Served, expected: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [program] = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    shutil.copy(served.image, tmp_path / "case.nii.gz")
    monkeypatch.chdir(tmp_path)
    exec(program.replace("http://127.0.0.1:8477", served.address), {})
    require_same(tmp_path / "labels.nii.gz", expected)


def test_predict_waits_and_leaves_nothing(served: Served, expected: Path, tmp_path: Path) -> None:
    done = subprocess.run(
        ["curl", "-sf", "-F", f"image=@{served.image}", f"{served.address}/v1/predict", "-o", tmp_path / "x.nii.gz"],
        timeout=30,
        check=False,
    )
    assert done.returncode == 0
    require_same(tmp_path / "x.nii.gz", expected)
    assert list((served.jobs / "jobs").iterdir()) == []


def test_a_zip_file_with_the_images_is_a_case(served: Served, expected: Path, tmp_path: Path) -> None:
    content = zipped(tmp_path, **{"a/b_0000.nii.gz": served.image.read_bytes(), "__MACOSX/._b": b"x"})
    (tmp_path / "case.zip").write_bytes(content)
    served.client.predict([tmp_path / "case.zip"], tmp_path / "labels.nii.gz")
    require_same(tmp_path / "labels.nii.gz", expected)


def test_a_field_may_be_named_after_its_channel(served: Served) -> None:
    status, job = post(served, [("MRI", "x.nii.gz", served.image.read_bytes())])
    assert status == 202
    served.client.cancel(job["id"])


def test_models_and_their_channels_are_listed(served: Served) -> None:
    [model] = served.client.models()
    assert model["channels"] == ["MRI"]
    assert model["labels"] == {"1": "inner", "2": "outer"}
    assert model["endings"][0] == ".nii.gz"


def test_the_interface_is_documented(served: Served) -> None:
    status, document = request(served, "GET", "/openapi.json")
    assert status == 200
    assert {"/v1/jobs", "/v1/jobs/{job}", "/v1/jobs/{job}/result", "/v1/predict", "/v1/models"} <= {*document["paths"]}
    assert "multipart/form-data" in document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]


BAD = {
    "no file": ([], 400, "the form has no file"),
    "an unknown ending": ([("image", "x.png", b"x")], 415, "a file of an unknown kind"),
    "no image": ([("image", "x.nii.gz", b"hello")], 422, "no NIfTI header"),
    "too many voxels": ([("image", "x.nii.gz", gzipped_nifti((30, 30, 30), bytes(27000)))], 413, "27000 voxels"),
    "a huge header": ([("image", "x.nii.gz", gzipped_nifti((32767, 32767, 32767)))], 422, "more than"),
    "two images": ([("image", "x.nii.gz", b"x"), ("image", "y.nii.gz", b"x")], 422, "there are 2 images"),
    "an unknown channel": ([("CT", "x.nii.gz", b"x")], 422, "unknown file field 'CT'"),
    "a broken zip": ([("image", "x.zip", b"PK\3\4 broken")], 400, "not a readable zip file"),
    "a zip and a file": ([("image", "x.zip", b"x"), ("image", "y.nii.gz", b"x")], 400, "a zip file among 2 files"),
    "too many parts": ([("image", "x.nii.gz", b"x")] * 65, 400, "more than 64 parts"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_uploads_are_refused_with_a_reason(served: Served, name: str) -> None:
    files, status, words = BAD[name]
    found, document = post(served, files)
    assert (found, words in document["error"]["what"]) == (status, True), document
    assert document["error"]["expected"] or document["error"]["remedy"]
    assert str(served.jobs) not in json.dumps(document)
    assert list((served.jobs / "incoming").iterdir()) == []


@pytest.mark.parametrize(
    ("entries", "status"),
    [({"x.nii.gz": bytes(50_000_000)}, 413), ({"../x.nii.gz": b"x"}, 422), ({"readme.txt": b"x"}, 415), ({}, 422)],
)
def test_hostile_zip_files_are_refused(served: Served, entries: dict[str, bytes], status: int, tmp_path: Path) -> None:
    found, document = post(served, [("image", "x.zip", zipped(tmp_path, **entries))])
    assert found == status, document


@pytest.mark.parametrize(
    ("fields", "words"),
    [({"model": "x"}, "no model 'x'"), ({"output": "x"}, "no output 'x'"), ({"ouput": "x"}, "unknown field 'ouput'")],
)
def test_unknown_options_are_refused(served: Served, fields: dict[str, str], words: str) -> None:
    status, document = post(served, [("image", "x.nii.gz", served.image.read_bytes())], **fields)
    assert (status, words in document["error"]["what"]) == (422, True)


def test_a_large_upload_is_refused_with_and_without_its_length(served: Served, tmp_path: Path) -> None:
    (tmp_path / "x.nii.gz").write_bytes(bytes(LIMITS.upload_bytes + 5_000_000))
    with pytest.raises(ServerError, match="at most 200000") as refused:
        served.client.submit([tmp_path / "x.nii.gz"])
    assert refused.value.status == 413
    kind = {"Content-Type": "multipart/form-data; boundary=b", "Transfer-Encoding": "chunked"}
    block = b"10000\r\n" + b"-" * 65536 + b"\r\n"
    head = "".join(f"{key}: {value}\r\n" for key, value in kind.items())
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="x.nii.gz"\r\n\r\n'
    first = f"{len(start):x}\r\n".encode() + start + b"\r\n"
    text = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n{head}\r\n".encode()
    assert b" 413 " in raw_request(served.address, text + first + block * 8 + b"0\r\n\r\n").splitlines()[0]


def test_an_upload_that_is_cut_off_is_deleted(served: Served) -> None:
    kind = "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 1000"
    text = f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1\r\n{kind}\r\n\r\n--b\r\n"
    raw_request(served.address, text.encode(), ends=True)
    deadline = time.monotonic() + 10
    while list((served.jobs / "incoming").iterdir()) and time.monotonic() < deadline:
        pass
    assert list((served.jobs / "incoming").iterdir()) == []


def test_a_body_that_is_no_form_is_refused(served: Served) -> None:
    assert request(served, "POST", "/v1/jobs", b"{}", {"Content-Type": "application/json"})[0] == 415
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert request(served, "POST", "/v1/jobs", b"no form", kind)[0] == 400
    assert request(served, "POST", "/v1/jobs", b"--b\r\n", kind)[0] == 400


@pytest.mark.parametrize("path", [f"/v1/jobs/{UNKNOWN}", f"/v1/jobs/{UNKNOWN}/result", "/v1/jobs/..%2f..%2fx", "/nope"])
def test_what_is_not_there_is_not_found(served: Served, path: str) -> None:
    status, document = request(served, "GET", path)
    assert status == 404
    assert document["error"]["what"].startswith("there is no such")


def test_a_result_is_refused_before_the_job_is_done(served: Served) -> None:
    client = served.client
    jobs = [client.submit([served.image]) for _ in range(4)]
    assert request(served, "GET", f"/v1/jobs/{jobs[-1]}/result")[0] == 409
    for job in jobs:
        client.cancel(job)
        with pytest.raises(ServerError, match="no such job"):
            client.status(job)


def test_a_case_that_cannot_be_predicted_fails_with_the_reason(served: Served, tmp_path: Path) -> None:
    image = SimpleITK.GetImageFromArray(np.full((8, 8, 8), np.inf, np.float32))
    SimpleITK.WriteImage(image, str(tmp_path / "x.nii.gz"))
    client = served.client
    job = client.submit([tmp_path / "x.nii.gz"])
    with pytest.raises(ServerError, match="infinite") as failed:
        client.wait(job, poll_s=0.05)
    assert str(served.jobs) not in str(failed.value)
    assert job not in str(failed.value)
    assert request(served, "GET", f"/v1/jobs/{job}/result")[0] == 422
    client.cancel(job)


def test_names_of_uploaded_files_are_not_logged(
    served: Served, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = tmp_path / "MUSTERMANN_0000.nii.gz"
    file.write_bytes(served.image.read_bytes())
    with caplog.at_level("DEBUG", logger="segwright"):
        status = served.client.predict([file], tmp_path / "labels.nii.gz")
    assert status["id"] in caplog.text
    assert "MUSTERMANN" not in caplog.text


def test_a_restart_keeps_results_and_a_stop_finishes_the_running_job(
    served: Served, expected: Path, tmp_path: Path
) -> None:
    jobs = tmp_path / "jobs"
    with serving(served.model, jobs) as address:
        client = Client(address)
        first = client.submit([served.image])
        client.wait(first, poll_s=0.05)
        others = [client.submit([served.image]) for _ in range(3)]
    with serving(served.model, jobs) as address:
        client = Client(address)
        for job in (first, *others):
            client.wait(job, poll_s=0.05)
            client.download(job, tmp_path / f"{job}.nii.gz")
            require_same(tmp_path / f"{job}.nii.gz", expected)


def test_a_server_with_a_token_needs_it(served: Served, tmp_path: Path) -> None:
    token = "0123456789abcdef"
    with serving(served.model, tmp_path / "jobs", token=token) as address:
        assert Client(address, token).models()[0]["channels"] == ["MRI"]
        with pytest.raises(ServerError, match="the token is wrong") as refused:
            Client(address, f"{token}x").submit([served.image])
        assert refused.value.status == 401


def test_a_folder_of_jobs_has_one_server(served: Served) -> None:
    with pytest.raises(LockHeldError), serving(served.model, served.jobs):
        pass


def test_a_port_in_use_is_named(served: Served, tmp_path: Path) -> None:
    port = urlsplit(served.address).port
    with pytest.raises(ConfigError, match=f"port {port}: cannot be listened at"):
        api.serve(served.model, port=int(port or 0), device="cpu", jobs=tmp_path)


def test_models_need_different_names(served: Served) -> None:
    with pytest.raises(ConfigError, match="NAME=MODEL"):
        api.serve([served.model, served.model], device="cpu")


def test_a_missing_package_is_named_with_its_extra(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("segwright.deploy.serve.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(ConfigError, match=r'uvicorn is not installed; pip install "segwright\[serve\]"'):
        api.serve(served.model)


def test_the_client_imports_the_standard_library_alone() -> None:
    program = (
        "import sys; before = {*sys.modules}\nimport segwright.deploy.serve.client\n"
        "known = {*sys.stdlib_module_names, 'segwright'}\n"
        "sys.exit(' '.join({name.split('.')[0] for name in {*sys.modules} - before} - known) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
