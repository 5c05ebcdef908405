"""`transpooler prepare`: documents to a tokenizer, WebDataset shards, a dataset card and a report.

The work is cut into small tasks: first parts of the input, then shards. Each task leaves one file, complete or absent,
in the work folder `OUTPUT.incomplete`. After a kill the next run does the tasks that are missing, with any number of
processes or machines, and writes the same bytes. What is to be published stands in a folder of its own there, which at
the end is renamed to `OUTPUT`, or copied with the report last; so an output is complete or absent, too. A finished
output of the same settings and inputs is kept. Memory holds a few tasks and about 100 bytes a document.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any

from transpooler.common import UserError, progress, read_json, say, write_json
from transpooler.data_pipeline.config import SPLITS, PrepareConfig
from transpooler.data_pipeline.prepare.assemble import assemble, count_shared
from transpooler.data_pipeline.prepare.card import write_card
from transpooler.data_pipeline.prepare.clean import clean_text
from transpooler.data_pipeline.prepare.executors import Executor
from transpooler.data_pipeline.prepare.inputs import InputGroup, group_locations, make_parts
from transpooler.data_pipeline.prepare.output import (
    Splits,
    check_writable,
    describe_inputs,
    find_difference,
    open_output,
    publish,
    read_finished_report,
    user_errors,
)
from transpooler.data_pipeline.prepare.tasks import Context, save_held_out
from transpooler.data_pipeline.prepare.workspace import (
    INPUTS,
    MADE,
    TOKENIZER_NOTE,
    is_marked,
    scratch_folder,
    wait_for_others,
    workspace,
)
from transpooler.data_pipeline.shards.manifest import (
    REPORT_FORMAT,
    REPORT_NAME,
    compute_own_sha256,
    describe_files,
    holds_all_files,
    read_report,
)
from transpooler.data_pipeline.shards.store import FileStore
from transpooler.data_pipeline.sources.columns import Columns
from transpooler.data_pipeline.sources.documents import RawDocument, read_documents
from transpooler.data_pipeline.sources.locations import resolve_paths
from transpooler.data_pipeline.sources.stamps import find_changed
from transpooler.data_pipeline.tokenizer import fingerprint, load_tokenizer, train_tokenizer
from transpooler.data_pipeline.tokenizer_rules import bind_cleaning

HELD_OUT_SPLITS = ("validation", "test")
_NOT_SETTINGS = ("output", "scratch", "workers", "executor", "sources", "sources_folder", "on_bad_file")
_PARTS_FORMAT = 2
"""Rises when parts of the same input and settings come to hold something else."""


def prepare(config: PrepareConfig, array_task: tuple[int, int] | None = None) -> dict[str, Any]:
    """Write the shards that `config` describes, unless they are there; returns the report.

    `array_task` = (i, n) does every n-th task from the i-th, and returns {}: other array tasks do the others, and a run
    without `array_task` the rest. Raises UserError for unusable input, an output of something else, missing permission
    or a full disk.
    """
    folder = config.sources_folder
    splits: Splits = {
        split: locations
        for split in SPLITS
        if (locations := resolve_paths(getattr(config.sources, split), f"prepare.sources.{split}", folder))
    }
    if not splits:
        raise UserError("prepare.sources: no input; for example prepare.sources.train=[papers.jsonl]")
    config = replace(config, workers=config.workers or len(os.sched_getaffinity(0)))
    output = open_output(config.output)
    scratch = scratch_folder(config, output)
    with user_errors(config.output, scratch):
        settings = _settings(config)
        finished = read_finished_report(output, settings, splits)
        if finished is None or is_marked(scratch):  # a run that was killed when it had published leaves its work
            executor = Executor(config.executor, config.workers)
            place = workspace(scratch, output.location, _hash(settings, splits), shared=array_task is not None)
            with closing(executor), place as work:
                finished = read_finished_report(output, settings, splits)  # another run may just have ended
                if finished is None:
                    return _prepare(work, output, _Job(config, settings, splits, executor), array_task)
    say(f"{config.output}: already prepared from the same files with the same settings; nothing to do")
    return finished


@dataclass(frozen=True)
class _Job:
    """What one preparation is to do, and who does it."""

    config: PrepareConfig
    settings: dict[str, Any]
    splits: Splits
    executor: Executor


def _prepare(work: Path, output: FileStore, job: _Job, array_task: tuple[int, int] | None) -> dict[str, Any]:
    """Do what is missing in the work folder and publish it, or do an array task's share."""
    if array_task is not None:
        _Preparation.start(work, job).do_tasks(array_task)
        say(f"array task {array_task[0]} of {array_task[1]}: done; run `transpooler prepare` once without it")
        return {}
    check_writable(output)
    made = FileStore(work / MADE)
    report = read_report(made)
    if report is None or find_difference(report, job.settings, job.splits) or not holds_all_files(made, report):
        report = _Preparation.start(work, job).finish()
    else:
        say(f"{work}: an earlier run has finished the work; publishing it")
    publish(work, output)
    say(f"{job.config.output}: ready")
    return report


@dataclass(frozen=True)
class _Preparation:
    """One preparation: its folder, job, inputs and tokenizer."""

    work: Path
    job: _Job
    inputs: dict[str, list[dict[str, Any]]]
    special_ids: tuple[int, ...]
    tokenizer: dict[str, Any]

    @classmethod
    def start(cls, work: Path, job: _Job) -> "_Preparation":
        folder, note = work / MADE / "tokenizer", work / TOKENIZER_NOTE
        with wait_for_others(work):
            (work / MADE / REPORT_NAME).unlink(missing_ok=True)  # from here on it may not be what lies there
            # Before they are read, so that the next run notices a file that changes meanwhile.
            inputs = describe_inputs(job.splits, work / INPUTS)
            clean = job.config.clean
            key = _hash(
                job.settings["tokenizer"], job.settings["clean"], inputs if job.config.tokenizer.path is None else None
            )
            if not note.is_file() or json.loads(note.read_text())["key"] != key:
                shutil.rmtree(folder, ignore_errors=True)
                tokenizer = _make_tokenizer(job.config, job.splits)
                bind_cleaning(tokenizer, clean.unicode_form, clean.control_characters)
                tokenizer.save_pretrained(folder)
                facts = {"fingerprint": fingerprint(tokenizer), "vocab_size": len(tokenizer)}
                special = sorted({*tokenizer.all_special_ids} - {tokenizer.unk_token_id})
                write_json(note, {"key": key, "special_ids": special, **facts})
            elif any(work.glob("parts/*/*/*.npz")):
                say(f"{work}: going on with what an earlier run left")
            facts = read_json(note)
            del facts["key"]
            return cls(work, job, inputs, tuple(facts.pop("special_ids")), facts)

    def do_tasks(self, array_task: tuple[int, int] | None) -> dict[str, list[InputGroup]]:
        """Do the tasks of held-out splits, then those (or a share) of the others; returns each split's groups."""
        held_out: str | None = None
        done: dict[str, list[InputGroup]] = {}
        first = [split for split in HELD_OUT_SPLITS if split in self.job.splits]
        for split in first:  # done by every array task, so that none waits for another
            done[split] = self._do_split(split, None, None)
        if self.job.config.clean.held_out_overlap is not None and first:
            parts = [part for split in first for group in done[split] for part in group.parts]
            path = self.work / "parts" / f"held-out-{_hash([str(part.relative_to(self.work)) for part in parts])}.npz"
            if parts and not path.is_file():
                save_held_out(parts, path)
            held_out = str(path) if parts else None
        for split in self.job.splits:
            if split not in first:
                done[split] = self._do_split(split, held_out, array_task)
        return done

    def finish(self) -> dict[str, Any]:
        """Do the tasks that are left, write the shards, the card and, at the end, the report."""
        made, job = self.work / MADE, self.job
        for split in SPLITS:  # of an earlier run with other settings
            if split not in job.splits:
                shutil.rmtree(made / split, ignore_errors=True)
        done = self.do_tasks(None)
        self._check_inputs(done)
        self._compare_held_out(done)
        indexes = {
            split: assemble(self.work, split, done[split], job.config, job.executor, **self.tokenizer)
            for split in job.splits
        }
        write_card(made, job.config, indexes, self.tokenizer)
        report = {
            "format": REPORT_FORMAT,
            "settings": job.settings,
            "inputs": self.inputs,
            "tokenizer": self.tokenizer,
            "splits": {
                split: {
                    "documents": index["num_documents"],
                    "source_tokens": index["num_source_tokens"],
                    "target_tokens": index["num_target_tokens"],
                    "shards": len(index["shards"]),
                    "dropped": index["dropped"],
                }
                for split, index in indexes.items()
            },
            "files": describe_files(made, indexes),
        }
        report["sha256"] = compute_own_sha256(report)
        write_json(made / REPORT_NAME, report)
        return report

    def _check_inputs(self, done: dict[str, list[InputGroup]]) -> None:
        """UserError: an input has changed since it was described. What was read of it is removed."""
        changed = set(find_changed(chain.from_iterable(self.inputs[split] for split in done)))
        for group in chain.from_iterable(done.values()):
            for location in group.locations:
                if location in changed:
                    shutil.rmtree(group.folder)
                    raise UserError(f"{location}: changed while it was read; when it is complete, prepare again")

    def _compare_held_out(self, done: dict[str, list[InputGroup]]) -> None:
        """Say how many documents the held-out splits share, which makes the test no test."""
        parts = [[part for group in done.get(split, ()) for part in group.parts] for split in HELD_OUT_SPLITS]
        if all(parts) and (count := count_shared(*parts)):
            say(f"prepare: {count} documents of {HELD_OUT_SPLITS[1]} are in {HELD_OUT_SPLITS[0]}, too; they are kept")

    def _do_split(self, split: str, held_out: str | None, array_task: tuple[int, int] | None) -> list[InputGroup]:
        config = self.job.config
        columns = Columns.of(config, require_target=split != "pretrain")
        context = Context(
            replace(config, output="", scratch=None, workers=1, executor="processes"),
            columns,
            str((self.work / MADE / "tokenizer" / "tokenizer.json").absolute()),
            self.tokenizer["fingerprint"],
            self.tokenizer["vocab_size"],
            self.special_ids,
            held_out if held_out is None else str(Path(held_out).absolute()),
            sketch=split in HELD_OUT_SPLITS and config.clean.held_out_overlap is not None,
        )
        inputs = {item["path"]: item for item in self.inputs[split]}
        groups = []
        for locations in group_locations(self.job.splits[split]):
            key = _hash(_PARTS_FORMAT, self.job.settings, self.tokenizer, held_out and Path(held_out).name, split)
            key = _hash(key, [{k: v for k, v in inputs[name].items() if k != "mtime_ns"} for name in locations])
            groups.append(InputGroup(locations, (self.work / "parts" / split / key).absolute()))
        with progress(f"prepare {split} (tasks)") as bar:
            make_parts(groups, context, self.job.executor, array_task, bar)
        return groups


def _make_tokenizer(config: PrepareConfig, splits: Splits) -> Any:
    if config.tokenizer.path is not None:
        return load_tokenizer(config.tokenizer.path)
    if not splits.keys() & {"train", "pretrain"}:
        raise UserError(
            "prepare.tokenizer.path: give the tokenizer of your model; one can be trained only on train or pretrain "
            "sources"
        )
    documents = islice(_read_training_documents(config, splits), config.tokenizer.max_training_documents)
    with progress("train the tokenizer (documents)") as bar:

        def texts() -> Iterator[str]:
            for document in documents:
                yield from (clean_text(text, config.clean) for text in (document.source, document.target) if text)
                bar.advance()

        return train_tokenizer(texts(), config.tokenizer.vocab_size, config.tokenizer.algorithm)


def _read_training_documents(config: PrepareConfig, splits: Splits) -> Iterator[RawDocument]:
    """Yield documents of train and pretrain in turn."""
    skip = config.on_bad_file == "skip"
    streams = (
        read_documents(splits[split], Columns.of(config, require_target=split != "pretrain"), skip)
        for split in ("train", "pretrain")
        if split in splits
    )
    for record in chain.from_iterable(zip_longest(*streams)):
        if isinstance(record, RawDocument):
            yield record


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """Return the settings that decide the output's bytes, with the input files' content."""
    settings = asdict(config)
    for name in _NOT_SETTINGS:
        del settings[name]
    if config.tokenizer.path is not None:
        settings["tokenizer"] = {"fingerprint": fingerprint(load_tokenizer(config.tokenizer.path))}
    return json.loads(json.dumps(settings))  # as the report gives them back: lists, not tuples


def _hash(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]
