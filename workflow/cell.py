"""The jobs of one cell: which arms need which stages, and the reward models on their pairs."""

from sso.config import Arm
from sso.jobs.job import Job
from sso.objective import PAIR_NODES
from sso.train.settings import Training
from workflow import evaluation
from workflow.shared import Draft, Model
from workflow.stages import Stages


class Cell:
    """One backbone with one seed."""

    def __init__(self, draft: Draft, backbone: str, seed: int):
        self.draft, self.make = draft, Stages(draft, backbone, seed)
        self.results: list[str] = []
        """The files that the report reads."""
        self.trained_on: dict[str, list[str]] = {}
        """Arm -> what its policy is trained on: its pairs, or the triples of each iteration, which hold pairs too."""

    def build(self) -> list[str]:
        """Add all jobs; returns the files that the report reads."""
        make, experiment = self.make, self.draft.experiment
        if make.start != make.base:
            make.sft()
        for name, arm in make.arms.items():
            if arm.policy is None:
                self.evaluate(name, make.start, name)
            elif arm.chained:
                self.chain(name, arm, arm.policy)
            elif arm.data == "annotated" and not experiment.world:
                self.annotated(name, arm.policy)
            else:
                self.pairs(name, arm, arm.policy)
        for name, reward in experiment.rewards.items():
            here = reward.backbones is None or make.name in reward.backbones
            if here and all(source.arm is None or source.arm in make.arms for source in reward.parts):
                self.results.append(evaluation.reward(make, name, self.trained_on).output)
        return self.results

    def policy(self, name: str, training: Training, pairs: Job, reference: str) -> None:
        """A policy on pairs whose scores are there, and its evaluation."""
        policy = self.make.train("policy", name, training, pairs, self.make.start, reference, run=name)
        self.trained_on[name] = [pairs.output]
        self.evaluate(name, Model(policy.output, made=True), name)

    def annotated(self, name: str, training: Training) -> None:
        """A policy on annotated pairs that others made; nothing is sampled."""
        pairs = self.draft.preferences(1, 1)
        self.policy(name, training, pairs, self.make.reference("preferences", pairs, training, PAIR_NODES).output)

    def pairs(self, name: str, arm: Arm, training: Training) -> None:
        """Generator, pairs, policy and evaluation of an arm that trains on pairs."""
        make, source = self.make, self.make.start
        all_sampled = not self.draft.experiment.data.generator_queries
        triples = make.sample(name, source, make.whole) if arm.generator or all_sampled else None
        if arm.generator and triples:
            reference = make.shared_reference(arm, triples)
            generator = make.train("generator", name, arm.generator, triples, source, reference.output)
            source = Model(generator.output, made=True)
        if arm.generator or triples is None:
            pairs = make.generated_pairs(name, source, training)
        else:
            pairs = make.pairs(name, triples, training)
        self.policy(name, training, pairs, pairs.outputs[1])
        self.results.append(evaluation.data_quality(make, name, pairs).output)

    def chain(self, name: str, arm: Arm, training: Training) -> None:
        """Iterations: the current policy draws triples, then trains on them, itself the reference."""
        make, model, first = self.make, self.make.start, None
        self.trained_on[name] = []
        for number in range(1, arm.iterations + 1):
            if arm.data == "annotated":
                data = self.draft.preferences(number, arm.iterations)
            else:
                data = make.sample(name, model, "all" if arm.offline else "iteration", number)
            run, iteration = (name, 0) if arm.offline else (f"{name}/it{number}", number)
            policy = make.train(
                "policy", name, training, data, model, None, run=run, iteration=iteration, rate_from=first
            )
            first = first or self.draft.paths.path("policy", **make.first, run=run)
            model = Model(policy.output, made=True)
            self.trained_on[name].append(data.output)
            self.evaluate(name, model, run, iteration)

    def evaluate(self, name: str, model: Model, run: str, iteration: int = 0) -> None:
        """The answers of one model, and their judgement."""
        self.results.append(
            evaluation.judge(self.make, evaluation.answer(self.make, name, model, run, iteration)).output
        )
