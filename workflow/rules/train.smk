# Preference training: the reference scores that generators share, generators, policies.


rule reference:
    input:
        unpack(grid.inputs("reference")),
    output:
        grid.pattern("reference"),
    log:
        grid.log("reference"),
    benchmark:
        grid.benchmark("reference")
    priority: grid.priority("reference")
    conda:
        grid.environment
    threads: grid.threads("reference")
    resources:
        gpu=grid.resource("reference", "gpu"),
        cpus_per_task=grid.resource("reference", "cpus_per_task"),
        nodes=grid.resource("reference", "nodes"),
        mem_mb=grid.resource("reference", "mem_mb"),
        runtime=grid.resource("reference", "runtime"),
    params:
        model=grid.param("reference", "model"),
        objectives=grid.param("reference", "objectives"),
        settings=grid.param("reference", "settings"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso reference --model {params.model:q} --data {input.data:q} --objectives {params.objectives}"
        " --settings {params.settings:q} --out {output:q} > {log:q} 2>&1"


rule generator:
    input:
        unpack(grid.inputs("generator")),
    output:
        directory(grid.pattern("generator")),
    log:
        grid.log("generator"),
    benchmark:
        grid.benchmark("generator")
    priority: grid.priority("generator")
    conda:
        grid.environment
    threads: grid.threads("generator")
    resources:
        gpu=grid.resource("generator", "gpu"),
        cpus_per_task=grid.resource("generator", "cpus_per_task"),
        nodes=grid.resource("generator", "nodes"),
        tasks=grid.resource("generator", "tasks"),
        mpi=grid.resource("generator", "mpi"),
        mem_mb=grid.resource("generator", "mem_mb"),
        runtime=grid.resource("generator", "runtime"),
    params:
        model=grid.param("generator", "model"),
        settings=grid.param("generator", "settings"),
        options=grid.param("generator", "options"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso train --model {params.model:q} --data {input.data:q} --settings {params.settings:q} {params.options:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"


rule policy:
    input:
        unpack(grid.inputs("policy")),
    output:
        directory(grid.pattern("policy")),
    log:
        grid.log("policy"),
    benchmark:
        grid.benchmark("policy")
    priority: grid.priority("policy")
    conda:
        grid.environment
    threads: grid.threads("policy")
    resources:
        gpu=grid.resource("policy", "gpu"),
        cpus_per_task=grid.resource("policy", "cpus_per_task"),
        nodes=grid.resource("policy", "nodes"),
        tasks=grid.resource("policy", "tasks"),
        mpi=grid.resource("policy", "mpi"),
        mem_mb=grid.resource("policy", "mem_mb"),
        runtime=grid.resource("policy", "runtime"),
    params:
        model=grid.param("policy", "model"),
        settings=grid.param("policy", "settings"),
        options=grid.param("policy", "options"),
    shell:
        "export SSO_GPUS={resources.gpu}; "
        "sso train --model {params.model:q} --data {input.data:q} --settings {params.settings:q} {params.options:q}"
        " --seed {wildcards.seed} --out {output:q} > {log:q} 2>&1"
