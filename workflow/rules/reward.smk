# Bradley-Terry reward models and their RewardBench scores.


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
    params:
        model=grid.param("reward_model", "model"),
        settings=grid.param("reward_model", "settings"),
    shell:
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
    shell:
        "sso-rewardbench score --model {input.model:q} --data {input.data:q} --out {output:q} > {log:q} 2>&1"
