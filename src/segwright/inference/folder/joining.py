"""Join the logs of the parts of a prediction once all of its cases are predicted."""

from __future__ import annotations

from collections.abc import Sequence
from logging import getLogger

from segwright.core.errors import WorkspaceError
from segwright.inference.folder.jobs import Job
from segwright.inference.folder.log import PredictionLog
from segwright.inference.folder.log_files import PREDICTION_JSON

logger = getLogger(__name__)


def join_parts(part: PredictionLog, jobs: Sequence[Job], reader: str) -> None:
    """Write `prediction.json` as a run without parts does, if no case is left to predict; the parts' logs are kept.

    A warning says why it is not written. The caller holds the lock of the logs: of parts that end together, the second
    one sees the log of the first.

    Args:
        part: log of the part that has ended.
        jobs: of all parts, with the options of this one.
        reader: of label maps, as in the plan.
    """
    file = part.path.with_name(PREDICTION_JSON)
    try:
        log = PredictionLog.open(file, part.model, part.options)
    except WorkspaceError as error:
        logger.warning("%s: not written (%s)", file, error)
        return
    missing = [job for job in jobs if not log.is_recorded(job)]
    if others := [job for job in missing if log.is_of_other_model(job)]:
        logger.warning(
            "%s: not written, since another model, or this one with other options, predicted %s; to have all cases "
            "in one log, predict them again with --overwrite",
            *(file, _listed(others)),
        )
    elif missing:
        logger.info(
            "%s: will be written after the last part; %d of %d cases are missing", file, len(missing), len(jobs)
        )
    elif unfinished := log.unfinished(jobs, reader):
        logger.warning(
            "%s: not written, since %s lack files that this part has, or changed since they were predicted; run their "
            "parts again with the options of this one",
            *(file, _listed(unfinished)),
        )
    else:
        log.options = {**part.options, "devices": log.devices, "part": 0, "parts": 1}
        log.save()
        logger.info("%s: joins the logs of all parts, %d cases", file, len(jobs))


def warn_of_other_model(part: PredictionLog, jobs: Sequence[Job]) -> None:
    """Warn if a model that is not that of a log predicted cases of other parts.

    Args:
        part: log of the part that starts.
        jobs: of the other parts.
    """
    if others := [job for job in jobs if part.is_of_other_model(job)]:
        logger.warning(
            "%s: another model, or this one with other options, predicted %s; the logs of the parts will not be joined",
            *(part.path.parent, _listed(others)),
        )


def _listed(jobs: Sequence[Job]) -> str:
    more = f" and {len(jobs) - 1} more" if len(jobs) > 1 else ""
    return f"{jobs[0].output.name}{more}"
