# Tables and figures, then MLflow. The report's own source is an input: editing it reruns the report alone.


report: "../report/workflow.rst"


rule report:
    input:
        unpack(ask.inputs("report")),
    output:
        report(
            directory(ask.output("report")),
            patterns=["{name}.html", "figures/{name}.svg", "tables/{name}.csv"],
            caption="../report/report.rst",
            category="Report",
            labels={"what": "{name}"},
        ),
    log:
        ask.log("report"),
    benchmark:
        ask.benchmark("report")
    conda:
        ask.environment
    params:
        job=ask.mark("report"),
        results=ask.param("report", "results"),
    shell:
        "export SSO_JOB={params.job:q}; "
        "sso report --config {input.config:q} --results {params.results:q} --out {output:q} > {log:q} 2>&1"


rule mlflow:
    input:
        unpack(ask.inputs("mlflow")),
    output:
        touch(ask.output("mlflow")),
    log:
        ask.log("mlflow"),
    benchmark:
        ask.benchmark("mlflow")
    conda:
        ask.environment
    params:
        job=ask.mark("mlflow"),
        results=ask.param("mlflow", "results"),
        options=ask.param("mlflow", "options"),
    shell:
        "export SSO_JOB={params.job:q}; "
        "sso mlflow-sync --results {params.results:q} {params.options:q} > {log:q} 2>&1"
