//! Sources as JSON documents, and the OpenAPI operations about them.

use ion_jobs::pipeline::{Module, Parameter, SourceFields};
use ion_jobs::sources::RunReport;
use ion_model::clock::Millis;
use ion_model::source::{SOURCE_NAME_MAX, SourceRecord, SourceRun};
use serde_json::{Map, Value, json};

use super::super::openapi;

/// Returns a source as a document. Its member `definition` is what a client sends to change it.
pub(super) fn describe_source(source: &SourceRecord) -> Value {
    let SourceRecord { id, version, definition, next, runs, failures, .. } = source;
    let mut fields = json!(SourceFields::of(definition));
    fields["paused"] = json!(source.paused);
    let run = |run: &SourceRun| {
        json!({
            "number": run.number, "scheduled": run.scheduled, "began": run.began, "end": run.end,
            "run": run.correlation, "event": run.event, "job": run.job,
        })
    };
    let mut document = json!({
        "name": id, "version": version, "state": source.state().as_str(), "definition": fields,
        "added": source.added, "runs": runs, "failures": failures, "missed": source.missed,
        "asked": source.asked, "hasState": !source.state.is_empty(),
    });
    let may_run = *next != Millis::MAX && source.gone.is_none() && !source.paused;
    let optional = [
        ("next", may_run.then(|| json!(next))),
        ("pipeline", definition.pipeline.as_ref().map(|file| json!(file))),
        ("run", source.run.as_ref().map(run)),
        ("succeeded", source.succeeded.as_ref().map(run)),
        ("reason", source.reason.as_ref().map(|reason| json!(reason))),
        ("gone", source.gone.as_ref().map(|reason| json!(reason))),
        ("dispatcher", source.dispatcher.as_ref().map(|dispatcher| json!(dispatcher))),
        ("notBefore", (source.not_before > 0).then(|| json!(source.not_before))),
    ];
    for (name, value) in optional {
        if let Some(value) = value {
            document[name] = value;
        }
    }
    document
}

/// Returns a run as a document.
pub(super) fn describe_run(run: &RunReport) -> Value {
    let mut document = json!({
        "run": run.run, "scheduled": run.scheduled, "state": run.state(), "event": run.event,
    });
    if let Some(job) = &run.job {
        document["job"] = json!(job.id);
        document["created"] = json!(job.created);
        document["ended"] = json!(job.ended);
        document["attempts"] = json!(job.attempts.len());
        let last = job.attempts.last();
        document["reason"] = json!(last.and_then(|attempt| attempt.reason.as_deref()));
    }
    document
}

/// Returns a module that sources may start, with what a form for its sources asks.
pub(super) fn describe_kind(module: &Module) -> Value {
    let parameters = module.params.iter().flatten();
    let describe = |(name, parameter): (&String, &Parameter)| {
        let mut document = json!(parameter);
        document["name"] = json!(name);
        document["required"] = json!(parameter.required);
        document
    };
    json!({"module": module.name, "parameters": parameters.map(describe).collect::<Vec<_>>()})
}

fn text(about: &str) -> Value {
    json!({"type": "string", "description": about})
}

fn number(about: &str) -> Value {
    json!({"type": "integer", "format": "int64", "description": about})
}

/// Returns the schemas of the fields of a definition. A patch may have null in place of each.
fn field_schemas() -> Map<String, Value> {
    let scalar = json!({"type": ["string", "number", "boolean", "null"]});
    let nullable = |about: &str| json!({"type": ["string", "null"], "description": about});
    let fields = json!({
        "module": nullable("The module that it starts."),
        "every": nullable("Its period, such as 15m."),
        "at": nullable("Its times as a cron expression: minute, hour, day of the month, month, day of the week."),
        "zone": nullable("The time zone of `at`, such as Europe/London; UTC if it is left out."),
        "jitter": nullable("Each run begins up to so much later, such as 2m."),
        "missed": {
            "enum": ["last", "skip", "all", null],
            "description": "What happens about times at which no dispatcher ran.",
        },
        "first": {
            "type": ["string", "number", "boolean", "null"],
            "description": "How much of what is there the first run publishes: new, all, or a number.",
        },
        "with": {
            "type": ["object", "null"], "additionalProperties": scalar,
            "description": "The values of the module's parameters; `/source-kinds` lists these.",
        },
        "paused": {"type": ["boolean", "null"], "description": "Whether scheduled runs are held back."},
    });
    match fields {
        Value::Object(fields) => fields,
        _ => Map::new(),
    }
}

/// Returns the schema of a definition.
pub(super) fn definition_schema() -> Value {
    json!({
        "type": "object", "required": ["module"], "additionalProperties": false,
        "description": "What a person declares of a source. One of `every` and `at` is needed.",
        "properties": field_schemas(),
    })
}

/// Returns the schema of a source.
pub(super) fn source_schema() -> Value {
    json!({
        "type": "object", "required": ["name", "version", "state", "definition", "added", "runs"],
        "properties": {
            "name": text("Its name."),
            "version": number("Its version, which every change and every run raises."),
            "state": {"enum": ["idle", "running", "failing", "paused", "gone"]},
            "definition": {"$ref": "#/components/schemas/SourceDefinition"},
            "pipeline": text("The pipeline file that declares it. Such a source is changed there alone."),
            "added": number("When it was added, in milliseconds since 1970."),
            "next": number("When it runs next."),
            "notBefore": number("No scheduled run begins earlier: its last run asked for that, or failed."),
            "runs": number("How many runs it had."),
            "run": {"type": "object", "description": "Its latest run."},
            "succeeded": {"type": "object", "description": "The last run that succeeded."},
            "asked": {"type": "boolean", "description": "Whether a run was asked for that has not begun."},
            "failures": number("How many runs have failed since one succeeded."),
            "reason": text("Why the latest run failed."),
            "gone": text("Why what it reads is gone, in its module's words."),
            "missed": number("How many scheduled times were missed."),
            "dispatcher": text("The dispatcher that ran its latest run."),
            "hasState": {"type": "boolean", "description": "Whether a run has left a state for the next one."},
        },
    })
}

fn source_answer(what: &str) -> Value {
    let mut answer = openapi::json_answer(what, json!({"$ref": "#/components/schemas/Source"}));
    answer["headers"] = json!({
        "ETag": {"description": "The tag of this version.", "required": true, "schema": {"type": "string"}},
    });
    answer
}

/// Returns the operations of the routes: list, get, put, patch, delete, run, runs, kinds.
pub(super) fn describe_operations() -> [Value; 8] {
    let name = json!({
        "name": "name", "in": "path", "required": true, "description": "The source's name.",
        "schema": {
            "type": "string", "pattern": format!("^[A-Za-z0-9][A-Za-z0-9._-]{{0,{}}}$", SOURCE_NAME_MAX - 1),
        },
    });
    let header = |name: &str, what: &str| json!({"name": name, "in": "header", "description": what, "schema": {"type": "string"}});
    let if_match = header(
        "If-Match",
        "The tag of the version that the client has read: another one is not changed.",
    );
    let if_none_match = header("If-None-Match", "`*` adds a source, and changes none.");
    let cursor = |pattern: &str, what: &str| json!({"name": "cursor", "in": "query", "description": what, "schema": {"type": "string", "pattern": pattern}});
    let limit = |usual: usize, most: usize| {
        json!({
            "name": "limit", "in": "query", "description": "How many there are at most.",
            "schema": {"type": "integer", "minimum": 1, "maximum": most, "default": usual},
        })
    };
    let missing = openapi::problem("The source does not exist.");
    let malformed = openapi::problem("The path, a header, a parameter or the body cannot be read.");
    let declared = openapi::problem("A pipeline file declares the source; change it there.");
    let changed = openapi::problem(
        "The source is not the version that `If-Match` names, or `If-None-Match: *` found one.",
    );
    let invalid = openapi::problem(
        "The definition is wrong. `problems` lists each wrong field, as `{\"field\", \"problem\"}`.",
    );
    let page = |list: &str, what: &str, items: Value| {
        let mut answer = openapi::json_answer(
            what,
            json!({
                "type": "object", "required": [list, "next"],
                "properties": {
                    list: {"type": "array", "items": items},
                    "next": {"type": ["string", "null"], "description": "The cursor of the next page; null for the last one."},
                },
            }),
        );
        answer["headers"] = json!({"Link": {
            "description": "The path of the next page, as `<path>; rel=\"next\"`, if there is one.",
            "schema": {"type": "string"},
        }});
        answer
    };
    let body = |media: &[&str], schema: &Value| {
        let content: Map<String, Value> =
            media.iter().map(|media| ((*media).to_owned(), json!({"schema": schema}))).collect();
        json!({"required": true, "content": content})
    };
    let write_problems = |mut answers: Value| {
        answers["400"] = malformed.clone();
        answers["408"] = openapi::problem("The body came too slowly.");
        answers["409"] = declared.clone();
        answers["412"] = changed.clone();
        answers["413"] = openapi::problem("The body is too big.");
        answers["415"] =
            openapi::unknown_encoding("The body is not JSON, or has an unknown encoding.");
        answers["422"] = invalid.clone();
        answers
    };
    [
        json!({
            "operationId": "listSources", "summary": "The sources by name, a page at a time",
            "parameters": [
                cursor("^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$", "Go on after this place, which an earlier answer names as `next`."),
                limit(super::PAGE, super::PAGE_MAX),
            ],
            "responses": {
                "200": page("sources", "The page. It may have fewer sources than `limit` where they are large.", json!({"$ref": "#/components/schemas/Source"})),
                "400": malformed,
            },
        }),
        json!({
            "operationId": "getSource", "summary": "A source",
            "parameters": [name, header("If-None-Match", "The tag of the version that the client has.")],
            "responses": {
                "200": source_answer("The source."),
                "304": {"description": "The source is the version that `If-None-Match` names."},
                "400": malformed, "404": missing,
            },
        }),
        json!({
            "operationId": "putSource", "summary": "Add a source, or give it another definition",
            "parameters": [name, if_match, if_none_match],
            "requestBody": body(&["application/json"], &json!({"$ref": "#/components/schemas/SourceDefinition"})),
            "responses": write_problems(json!({
                "200": source_answer("The source has this definition."),
                "201": source_answer("The source is added."),
            })),
        }),
        json!({
            "operationId": "patchSource", "summary": "Change a source, pause it or resume it",
            "description":
                "The body is a merge patch (RFC 7396) of the definition: a member replaces the one \
                 of the definition, and null removes it. `{\"paused\": true}` pauses the source, and \
                 `{\"paused\": false}` resumes it, also if what it reads was gone. A patch with \
                 `every` removes `at`, and the other way round.",
            "parameters": [name, if_match],
            "requestBody": body(&["application/merge-patch+json", "application/json"], &json!({
                "type": "object", "additionalProperties": false, "properties": field_schemas(),
            })),
            "responses": write_problems(json!({
                "200": source_answer("The source as it is now."), "404": missing,
            })),
        }),
        json!({
            "operationId": "deleteSource", "summary": "Remove a source; its runs and what came of them stay",
            "parameters": [name, if_match],
            "responses": {
                "204": {"description": "The source is removed."},
                "400": malformed, "404": missing, "409": declared, "412": changed,
            },
        }),
        json!({
            "operationId": "runSource", "summary": "Run a source now, also one that is paused",
            "description": "The run begins as soon as a dispatcher has a free slot; if a run goes on, when that has ended.",
            "parameters": [name],
            "responses": {
                "202": source_answer("The run is asked for."), "400": malformed, "404": missing,
                "422": openapi::problem("The source's schedule cannot be used any more."),
            },
        }),
        json!({
            "operationId": "listSourceRuns", "summary": "The runs of a source, the latest first",
            "parameters": [
                name,
                cursor("^[\\s\\S]*$", "Go on after this run, which an earlier answer names as `next`."),
                limit(super::RUNS, super::RUNS_MAX),
            ],
            "responses": {
                "200": page("runs", "The page.", json!({
                    "type": "object", "required": ["run", "scheduled", "state", "event"],
                    "properties": {
                        "run": text("Its correlation, of which `/correlations/{correlation}` shows all."),
                        "scheduled": number("Its scheduled time."),
                        "state": text("The state of its job, or `waiting`."),
                    },
                })),
                "400": malformed, "404": missing,
            },
        }),
        json!({
            "operationId": "listSourceKinds", "summary": "The modules that sources may start, with their parameters",
            "responses": {"200": openapi::json_answer("The modules.", json!({
                "type": "object", "required": ["kinds"],
                "properties": {"kinds": {"type": "array", "items": {
                    "type": "object", "required": ["module", "parameters"],
                    "properties": {
                        "module": text("The module's name."),
                        "parameters": {"type": "array", "items": {
                            "type": "object", "required": ["name", "type", "required"],
                            "properties": {
                                "name": text("The parameter's name."),
                                "type": text("text, url, number, bool, duration or choice."),
                                "required": {"type": "boolean"},
                                "default": text("Its value where a source does not set it."),
                                "choices": {"type": "array", "items": {"type": "string"}},
                                "about": text("What it is for."),
                            },
                        }},
                    },
                }}},
            }))},
        }),
    ]
}
