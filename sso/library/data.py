"""Rows of data sets as the suite's records, with their reference scores; and the authors' own triples as such rows."""

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from sso import dialogues, reference
from sso.errors import InputError
from sso.jobs.distributed import from_main, is_main
from sso.objective import PAIR_NODES, Objective
from sso.packing import tokenize
from sso.preferences import are_triples, file_rows, usable
from sso.records import Pair, Record, Triple, checked
from sso.train.preference import Rows

TEXTS = ("chosen", "rejected", "original")


def records(rows: Iterable[Mapping[str, Any]], name: str) -> list[Triple] | list[Pair]:
    """Triples of rows with `system_good`, else pairs; ids are the rows' own (`id`), else their numbers from 0.

    A response is a text, or a list of the assistant's one message. Columns that are None are as if they were not there.

    Raises:
        InputError: a triple is not whole (names row and key), some rows only are triples, or no row makes a pair.
    """
    if isinstance(rows, list) and rows and isinstance(rows[0], Record):
        return rows  # made before
    found = [{key: value for key, value in row.items() if value is not None} for row in mappings(rows, name)]
    if not are_triples(found, name):
        return usable(found, name)[0]
    plain = ({**row, **{key: _said(row[key]) for key in TEXTS if key in row}} for row in found)
    return checked(enumerate(plain, 1), Triple, name, "row")


def fitting(rows: Any, name: str, objective: Objective) -> list[Triple] | list[Pair]:
    """`records` that the objective can be computed on; InputError where it needs triples, and these are pairs."""
    found = records(rows, name)
    if isinstance(found[0], Pair) and any(node not in PAIR_NODES for node in objective.nodes):
        raise InputError(
            f"{name}: objective {objective.training.objective!r} needs triples (system_good, system_bad, chosen, "
            "rejected, original), and these are pairs; give triples, or objective='pairs'."
        )
    return found


def mappings(rows: Any, name: str) -> list[Mapping[str, Any]]:
    """The rows; InputError where one is none: of a text's letters, or the names of a `DatasetDict`'s splits."""
    found = list(rows) if isinstance(rows, Iterable) else [rows]
    for number, row in enumerate(found, 1):
        if not isinstance(row, Mapping):
            raise InputError(f"{name}:{number}: a {type(row).__name__}, but must be a row; give one datasets.Dataset.")
    return found


def _said(value: Any) -> Any:
    """The text of the assistant's one message; anything else as it is."""
    one = value[0] if isinstance(value, list) and len(value) == 1 else None
    return one.get("content") if isinstance(one, Mapping) and one.get("role") == "assistant" else value


@dataclass
class Start:
    """The model that a training starts from: it makes data sets into samples with reference scores.

    ``path`` is the checkpoint that the model was read from; None for one that came in memory, told by its tensors.
    """

    model: Any
    path: Path | None
    tokenizer: Any
    objective: Objective

    @cached_property
    def _weights(self) -> str:
        return reference.weights_digest(self.path or self.model)

    def rows(self, data: Any, name: str, file: Path | None = None, keep: bool = False) -> Rows:
        """Samples of a data set with the scores of the model without adapters, read from ``file`` where they are these.

        Args:
            data: rows by column, as `records` takes them.
            name: what messages call them.
            file: where scores are looked for and kept; None: nowhere.
            keep: never write over a file, but refuse one that holds other scores.

        Raises:
            InputError: rows are bad, or lack what the objective needs; or the file is to be kept and does not fit.
        """
        training, nodes = self.objective.training, self.objective.nodes
        made_of = fitting(data, name, self.objective)
        made = tokenize(made_of, self.tokenizer, training.max_length, training.end_cut_responses)
        made.warn(training.max_length)
        if self.objective.base.reference_free:
            return Rows(made.samples, None, nodes)
        key = reference.make_key(self._weights, self.tokenizer, made_of, made.samples, training)
        scores = from_main(self._kept(file, key, keep) if file and is_main() else None)
        if scores is None:
            scores = self._score(made.samples, key, file)
        return Rows(made.samples, scores, nodes)

    def _kept(self, file: Path, key: dict[str, str], keep: bool) -> reference.Reference | None:
        """The scores of a file, if they are those of ``key`` and of all nodes."""
        if file.is_dir():
            raise InputError(f"reference_scores: {file} is a folder; give a file.")
        if not file.is_file():
            return None
        try:
            scores = reference.load(file, key)
            for node in self.objective.nodes:
                scores.column(node)
        except InputError as error:
            if keep:
                raise
            print(f"reference scores are made again: {error}", flush=True)
            return None
        return scores

    def _score(self, samples: list[Any], key: dict[str, str], file: Path | None) -> reference.Reference:
        training, pad = self.objective.training, self.tokenizer.pad_token_id
        was_training = self.model.training
        self.model.eval()
        with self.model.disable_adapter() if hasattr(self.model, "disable_adapter") else nullcontext():
            made = reference.make(self.model, samples, self.objective.nodes, pad, key, training, file)
        self.model.train(was_training)
        return made


def from_authors(rows: str | Path | Iterable[Mapping[str, Any]]) -> Any:
    """Triples in the format of the authors' code as a `datasets.Dataset` that `SSOTrainer` takes.

    Args:
        rows: a JSON or JSON Lines file, or its rows: `prompt` and `uuid` with dialogues of {from, value} as AutoAlign
            (algorithms/sso) writes them, or `instruction` and `idx` with texts as the paper's release (icip-cas/SSO)
            does; in both `p_system` and `n_system` are p+ and p-, and `raw` is yo. An id that repeats gets its row's
            number.

    Raises:
        InputError: a row is bad; names the row, from 1, and the key.
    """
    from datasets import Dataset

    name = str(rows) if isinstance(rows, str | Path) else "rows"
    found = file_rows(Path(rows)) if isinstance(rows, str | Path) else rows
    made: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(mappings(found, name), 1):
        triple = _authors_row(row, f"{name}: row {number}")
        own = next((str(row[key]) for key in ("uuid", "idx", "id") if row.get(key) is not None), str(number - 1))
        unique = own if own not in made else f"{own}#{number - 1}"
        made[unique] = {"id": unique, **triple}
    if not made:
        raise InputError(f"{name}: holds no row; give at least one.")
    return Dataset.from_list(list(made.values()))


def _authors_row(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    for key in ("p_system", "n_system"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise InputError(f"{where}: `{key}`: must be a text that is not empty.")
    if row.get("system"):
        # Theirs put p_system in its place, ours before it: other contexts than they trained on.
        raise InputError(f"{where}: `system`: must be empty, as the authors' code leaves it.")
    said: dict[str, tuple[list[Any], str]] = {}
    for key in ("chosen", "rejected", "raw"):
        if row.get(key) is None:
            raise InputError(f"{where}: `{key}`: is missing.")
        try:
            *earlier, last = dialogues.messages(row[key], "assistant")
            if last.role != "assistant":
                raise dialogues.LeftOut("does not end with an answer")
            said[key] = earlier, last.content
        except (dialogues.LeftOut, ValueError) as why:
            problem = str(why) if isinstance(why, dialogues.LeftOut) else "holds no turn"
            raise InputError(f"{where}: `{key}`: {problem}.") from why
        if earlier != said["chosen"][0]:
            raise InputError(
                f"{where}: `{key}`: follows on another dialogue than `chosen`; their earlier turns must be equal."
            )
    try:
        given = {key: row[key] for key in ("instruction", "prompt", "history") if row.get(key)}
        prompt = dialogues.joined(dialogues.before(given), said["chosen"][0])
        dialogues.started(prompt)
        if prompt[-1].role != "user" or prompt[0].role == "system":
            raise dialogues.LeftOut("not the user's turn, or a system message")
    except dialogues.LeftOut as why:
        key = "instruction" if row.get("instruction") else "prompt"
        raise InputError(f"{where}: `{key}`: {why}.") from why
    return {
        "prompt": [message.model_dump() for message in prompt],
        "system_good": row["p_system"],
        "system_bad": row["n_system"],
        "chosen": said["chosen"][1],
        "rejected": said["rejected"][1],
        "original": said["raw"][1],
    }
