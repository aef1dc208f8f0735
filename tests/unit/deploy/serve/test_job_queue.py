"""The queue of a server, and what a restart makes of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from segwright.deploy.serve.jobs import INPUTS, JOB_JSON, OUTPUTS, Failure, Job, JobFolders
from segwright.deploy.serve.queue import MAX_ATTEMPTS, JobEnded, JobQueue
from segwright.deploy.serve.refusals import Refusal

MODELS = frozenset({"m"})


def make_queue(folder: Path, *, size: int = 4, retention_s: float = 100.0, is_new: bool = True) -> JobQueue:
    folders = JobFolders(folder)
    folders.prepare()
    queue = JobQueue(folders, size=size, workers=1, retention_s=retention_s)
    if not is_new:
        queue.restore(MODELS)
    return queue


def add(queue: JobQueue, number: int, **values: object) -> Job:
    job = Job.model_validate({"id": f"{number:032x}", "model": "m", "files": ["a"], "created": number, **values})
    (queue.folders.new_upload(job.id) / INPUTS / "a").write_text("image")
    queue.add(job)
    return job


def finish(queue: JobQueue, job: Job) -> None:
    outputs = queue.folders.folder(job.id) / OUTPUTS
    outputs.mkdir()
    (outputs / "r").write_text("result")
    queue.finish(job.model_copy(update={"state": "done", "result": "r"}))


def run_next(queue: JobQueue) -> Job:
    job = queue.take()
    assert job is not None
    return job


def test_jobs_run_in_order_and_their_inputs_are_deleted(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    first, second = add(queue, 1), add(queue, 2)
    assert (queue.position(first.id), queue.position(second.id)) == (1, 2)
    running = run_next(queue)
    assert (running.id, running.state, queue.position(second.id)) == (first.id, "running", 1)
    queue.report(first.id, 0.5)
    assert queue.progress(first.id) == 0.5
    finish(queue, running)
    assert queue.get(first.id).state == "done"
    assert not (queue.folders.folder(first.id) / INPUTS).exists()


def test_a_full_queue_says_when_to_come_back(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, size=2)
    add(queue, 1)
    full = pytest.raises(Refusal, match="1 jobs wait and 1 are being uploaded")
    with queue.place(), full as refused, queue.place():
        pass
    assert refused.value.status == 429
    assert int(refused.value.headers["Retry-After"]) > 0
    with queue.place():
        pass


def test_after_a_kill_finished_jobs_are_kept_and_others_wait_again(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    done, running, waiting = add(queue, 1), add(queue, 2), add(queue, 3)
    finish(queue, run_next(queue))
    run_next(queue)
    queue.folders.new_upload("f" * 32)
    again = make_queue(tmp_path, is_new=False)
    assert again.get(done.id).state == "done"
    assert (again.position(running.id), again.position(waiting.id)) == (1, 2)
    assert (again.folders.folder(running.id) / INPUTS / "a").read_text() == "image"
    assert list((tmp_path / "incoming").iterdir()) == []


def test_a_case_that_ends_the_server_each_time_fails(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    job = add(queue, 1)
    for _ in range(MAX_ATTEMPTS):
        run_next(queue)
        queue = make_queue(tmp_path, is_new=False)
    failure = queue.get(job.id).failure
    assert failure is not None
    assert failure.what.startswith(f"the server ended {MAX_ATTEMPTS} times")


def test_a_job_of_a_model_that_is_gone_fails(tmp_path: Path) -> None:
    job = add(make_queue(tmp_path), 1, model="other")
    failure = make_queue(tmp_path, is_new=False).get(job.id).failure
    assert failure is not None
    assert "without model 'other'" in failure.what


def test_a_damaged_document_costs_its_job_alone(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    damaged, other = add(queue, 1), add(queue, 2)
    (queue.folders.folder(damaged.id) / JOB_JSON).write_text("{")
    again = make_queue(tmp_path, is_new=False)
    assert again.position(other.id) == 1
    assert not queue.folders.folder(damaged.id).exists()


def test_a_waiting_job_is_cancelled_with_its_files(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    job = add(queue, 1)
    queue.cancel(job.id)
    with pytest.raises(Refusal, match="no such job"):
        queue.get(job.id)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_running_job_ends_when_it_is_cancelled_even_after_a_kill(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    add(queue, 1)
    job = run_next(queue)
    queue.cancel(job.id)
    with pytest.raises(Refusal, match="no such job"):
        queue.get(job.id)
    with pytest.raises(JobEnded):
        queue.report(job.id, 0.5)
    again = make_queue(tmp_path, is_new=False)
    assert again.position(job.id) is None
    assert not queue.folders.folder(job.id).exists()
    queue.finish(job)
    with pytest.raises(Refusal, match="no such job"):
        queue.get(job.id)


def test_nothing_is_left_after_the_retention(tmp_path: Path) -> None:
    queue = make_queue(tmp_path, retention_s=0.05)
    done, failed = add(queue, 1), add(queue, 2)
    finish(queue, run_next(queue))
    queue.finish(run_next(queue).model_copy(update={"state": "failed", "failure": Failure(what="x")}))
    deadline = time.monotonic() + 0.06
    while time.monotonic() < deadline:
        pass
    for job in (done, failed):
        with pytest.raises(Refusal, match="no such job"):
            queue.get(job.id)
    queue.wipe_old()
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_old_jobs_are_deleted_at_the_next_start(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    add(queue, 1)
    finish(queue, run_next(queue))
    make_queue(tmp_path, retention_s=1e-9, is_new=False)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def test_a_closed_queue_takes_and_gives_no_job(tmp_path: Path) -> None:
    queue = make_queue(tmp_path)
    job = add(queue, 1)
    queue.close()
    assert queue.take() is None
    with pytest.raises(Refusal, match="about to end") as refused, queue.place():
        pass
    assert refused.value.status == 503
    assert make_queue(tmp_path, is_new=False).position(job.id) == 1
