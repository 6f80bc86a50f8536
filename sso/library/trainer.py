"""SSOTrainer: the suite's own training step behind the interface of trl's trainers.

The loss, the packing and the reference scores are those of `sso train`; here stand what a library adds to them: models
and data sets in memory, evaluation, and saving without ending the training.
"""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import gather_object
from torch.utils.data import DataLoader
from transformers import set_seed
from transformers.trainer_utils import EvalLoopOutput

from sso.chat import load_model
from sso.errors import InputError
from sso.jobs.distributed import from_main, is_main
from sso.library.config import SSOConfig
from sso.library.data import Start, fitting
from sso.library.models import origin, tokenizer_of, warn_of_lost_steps
from sso.logprobs import Scorer
from sso.objective import build
from sso.packing import cost, grouped
from sso.records import digest
from sso.reference import autocast, tokens_digest
from sso.train import checkpoints
from sso.train.global_batch import COUNTS, Tally
from sso.train.preference import PreferenceTrainer, Rows
from sso.train.run import check_engine, resuming, save


class SSOTrainer(PreferenceTrainer):
    """Trains a causal model with any objective of the suite, on `transformers.Trainer` (docs/library.md).

    Args:
        model: a checkpoint's folder or name on the hub, read in float32; or a model in memory, trained in place. Of a
            peft model the adapters are trained.
        args: None: an `SSOConfig` with the model's name.
        train_dataset: rows with the columns of triples, or of preference pairs where the objective needs no more.
        eval_dataset: one more such, or several by name.
        processing_class: the tokenizer, with a chat template; None: the one beside the model.
        peft_config: makes adapters, which are trained in place of the weights.
        callbacks, optimizers: as of `transformers.Trainer`.

    The reference is the model as it is given here, without adapters. Its scores are made at once and kept at
    `args.reference_scores`, or beside `args.output_dir`; they are read again where weights, rows, template, length and
    precision are the same. At `args.reference_scores` other ones are refused, beside the output they are replaced.

    Raises:
        InputError: model, tokenizer or rows do not do; one sentence that names what and where.
    """

    args: SSOConfig

    def __init__(
        self,
        model: Any,
        args: SSOConfig | None = None,
        train_dataset: Any = None,
        eval_dataset: Any = None,
        processing_class: Any = None,
        peft_config: Any = None,
        callbacks: Sequence[Any] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ):
        place = origin(model)
        args = SSOConfig(f"{Path(place).name or 'model'}-SSO") if args is None else args
        if not isinstance(args, SSOConfig):
            raise InputError(f"args: a {type(args).__name__}, but must be an SSOConfig.")
        if train_dataset is None:
            raise InputError("train_dataset: is missing; give a datasets.Dataset of triples or pairs.")
        if peft_config is not None and hasattr(model, "peft_config"):
            raise InputError("peft_config: the model has adapters already; give one of the two.")
        planned, objective = args.planned(), build(args.training())
        # What is wrong with rows is told before a model is loaded.
        train_dataset = fitting(train_dataset, "train_dataset", objective)
        eval_dataset = _each(eval_dataset, lambda rows, name: fitting(rows, name, objective))
        path = None if isinstance(model, torch.nn.Module) else Path(place)
        model = (load_model(path) if path else model).to(planned.device)
        tokenizer = tokenizer_of(model, processing_class)
        self._start = Start(model, path, tokenizer, objective)
        self._file = Path(args.reference_scores or f"{str(args.output_dir).rstrip('/')}.reference.safetensors")
        self._keep = args.reference_scores is not None
        rows = self._start.rows(train_dataset, "train_dataset", self._file, self._keep)
        held_out = _each(eval_dataset, self._held_out)
        self.made_of = digest([tokens_digest(rows.samples), objective.nodes])
        if peft_config is not None:
            from peft import get_peft_model

            set_seed(args.seed)
            model = self._start.model = get_peft_model(model, peft_config)
        warn_of_lost_steps(model)
        super().__init__(
            model=model,
            args=planned,
            train_dataset=rows,
            eval_dataset=held_out,
            processing_class=tokenizer,
            callbacks=list(callbacks or ()),
            optimizers=optimizers,
            objective=objective,
            scorer=Scorer(model, objective.nodes, tokenizer.pad_token_id, objective.training.layout),
        )

    def _held_out(self, records: Any, name: str) -> Rows:
        """An evaluation set, with a file of scores beside the training's."""
        file = self._file.with_name(f"{self._file.stem}.{name.removesuffix('_dataset')}{self._file.suffix}")
        return self._start.rows(records, name, file, self._keep)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """Train in place, from a checkpoint if one is given; True: from the last whole one in `output_dir`.

        Ends with the weights that `sso train` ends with, for the same start, records, settings and seed.

        Raises:
            InputError: there is no such checkpoint, it holds more than tensors, or a loss is not finite.
        """
        if resume_from_checkpoint is True:
            folder = Path(str(self.args.output_dir))
            found = from_main(checkpoints.latest(folder) if is_main() else None)
            if found is None:
                raise InputError(f"{folder}: no whole checkpoint to go on from; leave out resume_from_checkpoint.")
            resume_from_checkpoint = str(found)
        if resume_from_checkpoint:
            self._check(Path(resume_from_checkpoint))
        check_engine(self, self.settings.engine)
        with self.scorer.attention(self.model), resuming(resume_from_checkpoint or None):
            return super().train(resume_from_checkpoint or None, *args, **kwargs)

    def _check(self, checkpoint: Path) -> None:
        made_of = checkpoints.made_of(checkpoint)
        if made_of is None:
            raise InputError(f"{checkpoint}: no whole checkpoint; give one of `output_dir`, or True for the last.")
        if made_of != self.made_of:
            raise InputError(
                f"{checkpoint}: was made of other rows or another objective; give the same, or leave out "
                "resume_from_checkpoint."
            )

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Lists of items, of like length and at most `tokens_per_batch` tokens: this device's share.

        Raises:
            InputError: there is no such set, or it is new and the model no longer what scored as the reference.
        """
        rows: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        rows = dict(self.eval_dataset)[rows] if isinstance(rows, str) else rows  # type: ignore[arg-type]
        if rows is None:
            raise InputError("evaluate: there is no eval_dataset; give one to the trainer, or here.")
        if not isinstance(rows, Rows):
            base = hasattr(self.model, "disable_adapter") or self.objective.base.reference_free
            if self.state.global_step and not base:
                raise InputError(
                    "evaluate: the reference is the model before training, which has no scores of this set; give it "
                    "to the trainer as eval_dataset."
                )
            rows = self._start.rows(rows, "eval_dataset")
        costs = [cost(sample, self.scorer.nodes, self.scorer.layout) for sample in rows.samples]
        groups = grouped(costs, self.settings.tokens_per_batch, sorted(range(len(costs)), key=costs.__getitem__))
        return DataLoader(rows, batch_sampler=groups[self.args.process_index :: self.args.world_size], collate_fn=list)

    @torch.no_grad()
    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """The objective and its terms, means over the samples of all devices, under the names of the training's log."""
        before, self.tally, started = self.tally, Tally(), time.monotonic()
        self.model.eval()
        # Before training accelerate has not wrapped the model yet: without this it would compute in another precision.
        with self.scorer.attention(self.model), autocast(self.args.device, self.settings.numerics):
            for items in dataloader:
                self.sample_losses(self.model, items)
                self.control = self.callback_handler.on_prediction_step(self.args, self.state, self.control)
        tally, self.tally = self.tally, before
        tally.check_finite()
        names, values = tally.values(self.args.device)  # a device without a share has none
        parts = gather_object([dict(zip(names, values.tolist(), strict=True))])
        self._since += time.monotonic() - started  # is no time of training
        sums = {name: sum(part.get(name, 0.0) for part in parts) for name in max(parts, key=len)}
        count = int(sums["samples"])
        means = {name: value / count for name, value in sums.items() if name not in COUNTS}
        means["loss"] = means.pop("loss_per_sample")
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in means.items()}
        return EvalLoopOutput(None, None, metrics, count)  # type: ignore[arg-type]  # there are no predictions

    def save_model(self, output_dir: str | Path | None = None, _internal_call: bool = False) -> None:
        """Save model and tokenizer as a plain checkpoint, as `sso train` does: safetensors, adapters merged, in the
        precision that the training computes in. The model itself stays as it is; other files in the folder, too."""
        if _internal_call:  # a checkpoint of the training, with adapters by themselves
            super().save_model(str(output_dir or self.args.output_dir), _internal_call)
            return
        if not self.args.should_save:
            return
        model: Any = self.accelerator.unwrap_model(self.model)
        dtype = getattr(torch, self.settings.dtype)
        if hasattr(model, "merge_and_unload"):
            model = copy.deepcopy(model).merge_and_unload()
        if model.dtype != dtype:
            model = copy.deepcopy(model).to(dtype)
        model.config.dtype = dtype
        out = Path(str(output_dir or self.args.output_dir))
        save(model, self.processing_class, out / "saving")
        for file in (out / "saving").iterdir():
            file.replace(out / file.name)
        (out / "saving").rmdir()


def _each(data: Any, make: Callable[[Any, str], Any]) -> Any:
    """``make`` of an evaluation set and what it is called, or of several by name; None stays."""
    if isinstance(data, Mapping):
        return {str(key): make(value, f"eval_{key}_dataset") for key, value in data.items()}
    return None if data is None else make(data, "eval_dataset")
