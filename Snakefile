# The only entry: picks the config, checks it before any work, includes the rules, asks for the report.
#
#   snakemake                                                        config/micro.yaml
#   snakemake --configfile config/smoke.yaml                         another experiment
#   snakemake --config arms='{sso: {policy: {beta: 0.2}}}'           one setting changed
#   snakemake --configfile config/local_model.yaml --config model=DIR queries=FILE
#   snakemake --directory DIR                                        results under DIR/results

import os
import shutil
import sys
import time
from pathlib import Path

from snakemake.settings.types import DeploymentMethod

from sso.jobs import lifeline
from sso.jobs import mlflow_runs
from sso.jobs import warm
from sso.errors import InputError
from workflow import experiment as experiments
from workflow import arguments
from workflow import ending
from workflow import environments
from workflow import failures
from workflow.check import check
from workflow.hub_names import hub_names
from workflow.rules import JUDGES
from workflow.rules import Rules
from workflow.watch import quiet
from workflow.watch import watch

# A process is single-threaded; the commands are those beside this Python.
os.environ.update(OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false", MLFLOW_DISABLE_TELEMETRY="true")
os.environ.update(TQDM_DISABLE="1")  # of libraries, in log files; sso.jobs.progress writes lines
users_path = os.environ.get("PATH", os.defpath)
os.environ.update(PATH=os.pathsep.join([os.path.dirname(sys.executable), users_path]))
if Path(workflow.basedir, "sso").is_dir():  # else the suite is installed, and its neighbours are no other environment's
    os.environ.update(PYTHONPATH=os.pathsep.join(filter(None, [workflow.basedir, os.environ.get("PYTHONPATH")])))
lifeline.name_workflow()

deployment = workflow.deployment_settings
if DeploymentMethod.CONDA in deployment.deployment_method and shutil.which("conda") is None:
    print("warning: --use-conda, but there is no conda here: running in the current environment.", file=sys.stderr)
    deployment.deployment_method = set(deployment.deployment_method) - {DeploymentMethod.CONDA}
environments.hand_over(DeploymentMethod.CONDA in deployment.deployment_method)

try:
    arguments.check(sys.argv[1:])
    files = workflow.config_settings.configfiles or [Path(workflow.basedir, "config", "micro.yaml")]
    experiment = experiments.load(files, workflow.config_settings.config)
    check(experiment)
    ask = Rules(experiment)
    # `--resources` takes the place of all that a profile says of them.
    if ask.asks_endpoints and "judges" not in workflow.global_resources:
        workflow.register_resource("judges", JUDGES)
    # Where all models and data are local, a look-up on the hub could only cost time.
    if not hub_names(experiment):
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    if locked := lifeline.explain_lock(Path(ask.root), sys.argv[1:]):
        print(f"note: {locked}", file=sys.stderr)
except InputError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)


wildcard_constraints:
    backbone="[^/]+",
    seed="[0-9]+",
    run="[^/]+(/it[0-9]+)?",
    set="[^/]+(/it[0-9]+)?",
    arm="[^/]+",
    reward="[^/]+",
    guidelines="[^/]+(/it[0-9]+)?",
    part="preferences[^/]*",


include: "workflow/rules/data.smk"
include: "workflow/rules/sft.smk"
include: "workflow/rules/principles.smk"
include: "workflow/rules/sample.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/reward.smk"
include: "workflow/rules/evaluate.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        ask.targets,


started, watched, followers = time.time(), [], []


# One run a folder. Start-up of torch and transformers is paid once: jobs of tiny models are short.
onstart:
    lifeline.hold(Path(ask.root))
    watched.append(watch(workflow, ask.grid))
    followers.append(mlflow_runs.start_following(Path(ask.root), experiment.tracking_uri))
    if experiment.hardware is None and workflow.local_exec:
        warm.start()


onsuccess:
    for follower in followers:
        follower.terminate()
    for handler in filter(None, watched):
        handler.close()
    # A part of a run ends without a page of its own.
    if any(job.rule.name == "report" for job in workflow.dag.jobs):
        # Paths as they are where the command was typed: with `--directory`, from the root of the disk.
        root = Path(ask.root) if workflow.overwrite_workdir is None else Path(ask.root).resolve()
        for line in ending.told(experiment, root, users_path, brief=quiet(workflow)):
            print(line)


onerror:
    for follower in followers:
        follower.terminate()
    for handler in filter(None, watched):
        handler.close()
    for line in failures.told(ask.grid, started):
        print(line, file=sys.stderr)
