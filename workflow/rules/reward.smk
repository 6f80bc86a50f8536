# What reward models are trained on, Bradley-Terry reward models, and their RewardBench scores.


rule mixture:
    input:
        unpack(grid.inputs("mixture")),
    output:
        grid.pattern("mixture"),
    log:
        grid.log("mixture"),
    benchmark:
        grid.benchmark("mixture")
    priority: grid.priority("mixture")
    conda:
        grid.environment
    params:
        settings=grid.param("mixture", "settings"),
        bench=grid.param("mixture", "bench"),
    shell:
        "sso-rewardbench mix --settings {params.settings:q} --bench {params.bench:q} --out {output:q} > {log:q} 2>&1"


rule reward_model:
    input:
        unpack(grid.inputs("reward_model")),
    output:
        directory(grid.pattern("reward_model")),
    log:
        grid.log("reward_model"),
    benchmark:
        grid.benchmark("reward_model")
    priority: grid.priority("reward_model")
    conda:
        grid.environment
    threads: grid.threads("reward_model")
    resources:
        gpu=grid.resource("reward_model", "gpu"),
        cpus_per_task=grid.resource("reward_model", "cpus_per_task"),
        nodes=grid.resource("reward_model", "nodes"),
        tasks=grid.resource("reward_model", "tasks"),
        mpi=grid.resource("reward_model", "mpi"),
        mem_mb=grid.resource("reward_model", "mem_mb"),
        runtime=grid.resource("reward_model", "runtime"),
    params:
        model=grid.param("reward_model", "model"),
        settings=grid.param("reward_model", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso-rewardbench train --model {params.model:q} --pairs {input.pairs:q} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule rewardbench:
    input:
        unpack(grid.inputs("rewardbench")),
    output:
        report(
            grid.pattern("rewardbench"),
            caption="../report/rewardbench.rst",
            category="Reward models",
            subcategory="{backbone}",
            labels={"model": "{reward}", "seed": "{seed}"},
        ),
    log:
        grid.log("rewardbench"),
    benchmark:
        grid.benchmark("rewardbench")
    priority: grid.priority("rewardbench")
    conda:
        grid.environment
    threads: grid.threads("rewardbench")
    resources:
        gpu=grid.resource("rewardbench", "gpu"),
        cpus_per_task=grid.resource("rewardbench", "cpus_per_task"),
        nodes=grid.resource("rewardbench", "nodes"),
        mem_mb=grid.resource("rewardbench", "mem_mb"),
        runtime=grid.resource("rewardbench", "runtime"),
    params:
        bench=grid.param("rewardbench", "bench"),
        dtype=grid.param("rewardbench", "dtype"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso-rewardbench score --model {input.model:q} --data {params.bench:q} --dtype {params.dtype}"
        " --out {output:q} > {log:q} 2>&1"
