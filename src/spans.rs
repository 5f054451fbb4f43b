//! OpenTelemetry: sends the spans of [`ionfs::spans`] to the collector that
//! `OTEL_EXPORTER_OTLP_ENDPOINT` names.
//!
//! # How it works
//! The code makes spans of `tracing`. A layer turns them into OpenTelemetry's, with the ids and
//! parents that their fields give. (With `tracing-opentelemetry`, the code that makes a span would
//! have to call OpenTelemetry to set a parent of another process.) The SDK queues the spans that
//! have ended and sends them in batches from a thread of its own.
//!
//! # What it never does
//! - Hold up a job: when the queue is full, spans are dropped; when the collector is unavailable,
//!   there is one warning.
//! - Print the content of `OTEL_EXPORTER_OTLP_HEADERS`.

use std::cell::Cell;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use ionfs::errors::error_chain;
use ionfs::spans;
use opentelemetry::trace::{
    SpanContext, SpanId, SpanKind, Status, TraceContextExt as _, TraceFlags, TraceId, TraceState,
    Tracer as _, TracerProvider as _,
};
use opentelemetry::{Context, Key, KeyValue, Value};
use opentelemetry_http::{HttpClient, HttpError, Request, Response};
use opentelemetry_otlp::{SpanExporter, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SdkTracer, SdkTracerProvider};
use tokio::runtime::Handle;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer;
use tracing_subscriber::registry::LookupSpan;

use crate::CommandFailure;
use crate::settings::wants_spans;

/// The service name in spans, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES names another.
const SERVICE_NAME: &str = "ion";

/// How long one request to the collector may take.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the program waits at its end for the collector to take the queued spans.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

/// At most this many bytes of the collector's answer are read. Only its status matters.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// The sender of spans to the collector.
#[derive(Debug)]
pub(crate) struct Exporter {
    provider: SdkTracerProvider,
}

impl Exporter {
    /// Makes the exporter that OpenTelemetry's standard variables describe, or none if they ask for
    /// no spans. Must be called inside a Tokio runtime.
    pub(crate) fn from_environment() -> Result<Option<Self>, CommandFailure> {
        if !wants_spans() {
            return Ok(None);
        }
        ionfs::stores::install_tls_provider();
        let http = reqwest::Client::builder().timeout(SEND_TIMEOUT).build()?;
        let client = CollectorClient {
            http,
            runtime: Handle::current(),
            is_failing: AtomicBool::new(false),
        };
        let exporter = SpanExporter::builder().with_http().with_http_client(client).build()?;
        let given_name = Resource::builder().build().get(&Key::from_static_str("service.name"));
        let mut resource = Resource::builder();
        if given_name.is_none_or(|name| name.as_str().starts_with("unknown_service")) {
            resource = resource.with_service_name(SERVICE_NAME);
        }
        let provider = SdkTracerProvider::builder()
            .with_batch_exporter(exporter)
            .with_id_generator(DerivedIds::default())
            .with_resource(resource.build())
            .build();
        Ok(Some(Self { provider }))
    }

    /// Returns the layer that turns Ion's spans, and no others, into OpenTelemetry's.
    pub(crate) fn layer<S>(&self) -> impl Layer<S> + use<S>
    where
        S: Subscriber + for<'a> LookupSpan<'a>,
    {
        let is_own_span =
            |metadata: &Metadata<'_>| metadata.is_span() && metadata.target() == spans::TARGET;
        let filter =
            filter_fn(is_own_span).with_max_level_hint(LevelFilter::from_level(Level::INFO));
        OtelLayer { tracer: self.provider.tracer(SERVICE_NAME) }.with_filter(filter)
    }

    /// Sends the spans that are left, if the collector takes them within [`FLUSH_TIMEOUT`].
    pub(crate) async fn finish(self) {
        let result =
            tokio::task::spawn_blocking(move || self.provider.shutdown_with_timeout(FLUSH_TIMEOUT))
                .await;
        if !matches!(result, Ok(Ok(()))) {
            tracing::warn!("the last spans were not sent");
        }
    }
}

thread_local! {
    /// The trace id and span id for the next span that this thread makes, where they are given.
    static NEXT_IDS: Cell<(Option<TraceId>, Option<SpanId>)> = const { Cell::new((None, None)) };
}

/// Gives spans the ids that were derived from Ion's ids, and random ones otherwise.
#[derive(Debug, Default)]
struct DerivedIds(RandomIdGenerator);

impl IdGenerator for DerivedIds {
    fn new_trace_id(&self) -> TraceId {
        NEXT_IDS.get().0.unwrap_or_else(|| self.0.new_trace_id())
    }

    fn new_span_id(&self) -> SpanId {
        NEXT_IDS.get().1.unwrap_or_else(|| self.0.new_span_id())
    }
}

/// The layer that turns spans of `tracing` into OpenTelemetry's. An open span has its [`Context`]
/// in its extensions.
struct OtelLayer {
    tracer: SdkTracer,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for OtelLayer {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = SpanFields::default();
        attributes.record(&mut fields);
        let parent_span = span.parent();
        let parent =
            parent_span.as_ref().and_then(|parent| parent.extensions().get::<Context>().cloned());
        // A span that belongs to no correlation belongs to no trace, and is not sent.
        let Some(parent) = parent.or_else(|| fields.parent_context()) else { return };
        let span_id = fields.job.span_id();
        let name = fields.name.unwrap_or_else(|| attributes.metadata().name().to_owned());
        let kind = if span_id.is_some() { SpanKind::Consumer } else { SpanKind::Internal };
        let mut builder =
            self.tracer.span_builder(name).with_kind(kind).with_attributes(fields.attributes);
        if let Some(start_nanos) = fields.start_nanos {
            builder = builder.with_start_time(UNIX_EPOCH + Duration::from_nanos(start_nanos));
        }
        NEXT_IDS.set((fields.correlation.as_deref().map(trace_id), span_id));
        let otel_span = self.tracer.build_with_context(builder, &parent);
        NEXT_IDS.set((None, None));
        span.extensions_mut().insert(parent.with_span(otel_span));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let extensions = span.extensions();
        let Some(own_context) = extensions.get::<Context>() else { return };
        let mut fields = SpanFields::default();
        values.record(&mut fields);
        own_context.span().set_attributes(fields.attributes);
        if let Some(error) = fields.error {
            own_context.span().set_status(Status::error(error));
        }
    }

    fn on_close(&self, id: Id, context: layer::Context<'_, S>) {
        let own_context =
            context.span(&id).and_then(|span| span.extensions_mut().remove::<Context>());
        if let Some(own_context) = own_context {
            own_context.span().end();
        }
    }
}

/// An attempt of a job, as the fields of a span name it.
#[derive(Default)]
struct AttemptFields {
    job: Option<String>,
    number: Option<u64>,
}

impl AttemptFields {
    fn span_id(&self) -> Option<SpanId> {
        Some(SpanId::from_bytes(spans::span_id(self.job.as_deref()?, self.number?)))
    }
}

/// The fields of a span. Those that decide its name, ids or status have a member of their own.
#[derive(Default)]
struct SpanFields {
    name: Option<String>,
    start_nanos: Option<u64>,
    error: Option<String>,
    correlation: Option<String>,
    job: AttemptFields,
    parent: AttemptFields,
    attributes: Vec<KeyValue>,
}

impl SpanFields {
    /// Returns the parent context of a span that has no parent in this process.
    fn parent_context(&self) -> Option<Context> {
        let trace = trace_id(self.correlation.as_deref()?);
        Some(match self.parent.span_id() {
            None => Context::new(),
            Some(parent) => {
                let state = TraceState::default();
                let parent = SpanContext::new(trace, parent, TraceFlags::SAMPLED, true, state);
                Context::new().with_remote_span_context(parent)
            }
        })
    }

    fn record_text(&mut self, field: &Field, value: String) {
        match field.name() {
            spans::NAME => return self.name = Some(value),
            spans::ERROR => return self.error = Some(value),
            spans::CORRELATION => self.correlation = Some(value.clone()),
            name if name == spans::JOB.0 => self.job.job = Some(value.clone()),
            name if name == spans::PARENT.0 => self.parent.job = Some(value.clone()),
            _ => {}
        }
        self.add_attribute(field, value);
    }

    fn add_attribute(&mut self, field: &Field, value: impl Into<Value>) {
        self.attributes.push(KeyValue::new(field.name(), value));
    }
}

impl Visit for SpanFields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_text(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_text(field, format!("{value:?}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            spans::START_TIME => return self.start_nanos = Some(value),
            name if name == spans::JOB.1 => self.job.number = Some(value),
            name if name == spans::PARENT.1 => self.parent.number = Some(value),
            _ => {}
        }
        self.add_attribute(field, i64::try_from(value).unwrap_or(i64::MAX));
    }
}

fn trace_id(correlation: &str) -> TraceId {
    TraceId::from_bytes(spans::trace_id(correlation))
}

/// An HTTP client for the SDK's thread. That thread has no Tokio runtime, so the client sends the
/// requests on the program's runtime.
#[derive(Debug)]
struct CollectorClient {
    http: reqwest::Client,
    runtime: Handle,
    is_failing: AtomicBool,
}

#[async_trait]
impl HttpClient for CollectorClient {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let request = reqwest::Request::try_from(request)?;
        let result = self.runtime.spawn(send_request(self.http.clone(), request)).await?;
        let failed = match &result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("it answered {}", response.status())),
            Err(error) => Some(error_chain(error)),
        };
        match failed {
            None => self.is_failing.store(false, Ordering::Relaxed),
            // One warning for each time that the collector fails, until it takes spans again.
            Some(reason) if !self.is_failing.swap(true, Ordering::Relaxed) => {
                tracing::warn!(
                    reason,
                    "the collector of OTEL_EXPORTER_OTLP_ENDPOINT does not take spans"
                );
            }
            Some(_) => {}
        }
        Ok(result?)
    }
}

/// Sends a request and reads the answer, up to [`ANSWER_BYTES_MAX`] bytes. The URL may hold a
/// password, so no error names it.
async fn send_request(
    http: reqwest::Client,
    request: reqwest::Request,
) -> reqwest::Result<Response<Bytes>> {
    let mut answer = http.execute(request).await.map_err(reqwest::Error::without_url)?;
    let mut body = BytesMut::new();
    while let Some(piece) = answer.chunk().await.map_err(reqwest::Error::without_url)? {
        if body.len() + piece.len() > ANSWER_BYTES_MAX {
            break;
        }
        body.extend_from_slice(&piece);
    }
    let mut response = Response::new(body.freeze());
    *response.status_mut() = answer.status();
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}
