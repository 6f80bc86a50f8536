# What reward models are trained on, Bradley-Terry reward models, and their RewardBench scores.


rule mix:
    input:
        unpack(ask.inputs("mix")),
    output:
        ask.output("mix"),
    log:
        ask.log("mix"),
    benchmark:
        ask.benchmark("mix")
    priority: ask.priority("mix")
    conda:
        ask.environment
    params:
        job=ask.mark("mix"),
        settings=ask.param("mix", "settings"),
        bench=ask.param("mix", "bench"),
    shell:
        "export SSO_JOB={params.job:q}; "
        "sso-rewardbench mix --settings {params.settings:q} --bench {params.bench:q} --out {output:q} > {log:q} 2>&1"


rule reward_model:
    input:
        unpack(ask.inputs("reward_model")),
    output:
        directory(ask.output("reward_model")),
    log:
        ask.log("reward_model"),
    benchmark:
        ask.benchmark("reward_model")
    priority: ask.priority("reward_model")
    conda:
        ask.environment
    threads: ask.threads("reward_model")
    resources:
        **ask.resources("reward_model"),
    params:
        job=ask.mark("reward_model"),
        model=ask.param("reward_model", "model"),
        settings=ask.param("reward_model", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso-rewardbench train --model {params.model:q} --pairs {input.pairs:q} --settings {params.settings:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule rewardbench:
    input:
        unpack(ask.inputs("rewardbench")),
    output:
        report(
            ask.output("rewardbench"),
            caption="../report/rewardbench.rst",
            category="Reward models",
            subcategory="{backbone}",
            labels={"model": "{reward}", "seed": "{seed}"},
        ),
    log:
        ask.log("rewardbench"),
    benchmark:
        ask.benchmark("rewardbench")
    priority: ask.priority("rewardbench")
    conda:
        ask.environment
    threads: ask.threads("rewardbench")
    resources:
        **ask.resources("rewardbench"),
    params:
        job=ask.mark("rewardbench"),
        bench=ask.param("rewardbench", "bench"),
        dtype=ask.param("rewardbench", "dtype"),
    shell:
        "export SSO_GPUS={resources.gpu} SSO_JOB={params.job:q}; "
        "sso-rewardbench score --model {input.model:q} --data {params.bench:q} --dtype {params.dtype}"
        " --out {output:q} > {log:q} 2>&1"
