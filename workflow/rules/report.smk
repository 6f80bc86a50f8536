# Tables and figures, then MLflow. The report's own source is an input: editing it reruns the report alone.


report: "../report/workflow.rst"


# By the environment: everybody on the machine can read a command line, and Snakemake keeps it.
if experiment.tracking_uri:
    os.environ.update(MLFLOW_TRACKING_URI=experiment.tracking_uri)


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
        store=ask.param("mlflow", "store"),  # another one gets the records, too
    shell:
        "export SSO_JOB={params.job:q}; " "sso mlflow-sync --results {params.results:q} > {log:q} 2>&1"
