//! The bus on AMQP 0.9.1: RabbitMQ.
//!
//! # Topology
//! Ion uses the durable topic exchange `ion.events`, with the event type as routing key; a quorum
//! queue `ion.module.<name>` for each module; the topic exchange `ion.dead` and its quorum queue of
//! the same name for dead letters; and the exchange `ion.plane`, which says which plane the virtual
//! host belongs to. Every connection declares the exchanges and the dead letter queue again: this
//! changes nothing where they exist, and repairs a broker that lost them.
//!
//! # How it works
//! There are two connections, because a broker that slows publishers down must not slow consumers:
//! one publishes and administers, the other consumes. No task keeps a connection alive: the caller
//! that finds one broken opens it again, with a backoff. A publisher's channel carries one message
//! at a time, because a broker that returns an unroutable message does not say which message it is.
//! It only sends the return before that message's confirm.
//!
//! # What it never does
//! It never waits without a bound: each exchange with the broker may take [`ANSWER_WAIT`].

mod consuming;
mod dead;
mod inspect;
mod refusal;
mod subscriber;
mod url;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use ion_model::errors::error_chain;
use ion_model::event::Message;
use ion_system::failpoint;
use ion_system::patience::Retry;
use lapin::message::Delivery as Received;
use lapin::options::{
    BasicAckOptions, BasicGetOptions, BasicNackOptions, BasicPublishOptions, ConfirmSelectOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{
    BasicProperties, Channel, Confirmation, Connection, ConnectionProperties, ExchangeKind,
};
use tokio::sync::{Semaphore, SemaphorePermit};

use self::refusal::{BrokerAct, explain_error, is_internal, is_missing};
use self::url::Address;
use super::{Bus, BusReport, DeadLetter, Routed, StoreError, Subscription};

/// How long one exchange with the broker may take. A close() whose event document has been inserted
/// waits at most this long for the broker.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

/// How long a failed connection waits before the next try. Each failure doubles the wait up to
/// [`REST_MAX`]. Callers during the wait receive the last error at once.
const REST: Duration = Duration::from_millis(250);

/// The longest wait. With a longer one, a broker that is available again would stay unused.
const REST_MAX: Duration = Duration::from_secs(5);

/// The number of messages that are published concurrently. A confirm of a quorum queue needs a sync
/// of the disk, which this many messages can share.
const PUBLISHERS: usize = 32;

/// How often a message may be returned to its queue before the broker treats it as poison and
/// dead-letters it. The broker counts each return, including those by killed dispatchers and by
/// people who looked into the queue.
const DELIVERY_LIMIT: i32 = 100;

/// The number of returns after which [`Bus::peek`] publishes a message to its queue again: looking
/// into a queue must never use up [`DELIVERY_LIMIT`].
const REFRESHED_AT: i64 = 50;

/// The tries to declare a queue while others delete it. One try is too few for a dispatcher that
/// starts at that moment. A broker that reports a missing queue, or a fault of its own, every time
/// has another fault, which must be reported.
const DECLARES: Retry =
    Retry::times(60).doubling(Duration::from_millis(100), Duration::from_secs(2));

const EVENTS: &str = "ion.events";
const DEAD: &str = "ion.dead";
const QUEUE_PREFIX: &str = "ion.module.";

/// The exchange that marks which plane a virtual host belongs to.
const PLANE: &str = "ion.plane";

/// The error for a message that the broker did not accept. Ion's queues set no maximum length, and
/// reject messages that they cannot hold.
const REFUSED: &str = "the broker refused the message: one of its queues is full, by a policy with \
                       max-length (rabbitmqctl list_policies), or cannot write";

/// The names of a dead letter's headers.
mod header {
    pub(super) const MODULE: &str = "ion-module";
    pub(super) const REASON: &str = "ion-reason";
    pub(super) const AT: &str = "ion-at";
    pub(super) const EVENT: &str = "ion-event";
}

type Cause = Box<dyn std::error::Error + Send + Sync>;

fn queue_name(module: &str) -> String {
    format!("{QUEUE_PREFIX}{module}")
}

/// A bus on an AMQP broker.
#[derive(Debug)]
pub struct Amqp {
    name: String,
    publishing: BrokerConnection,
    consuming: BrokerConnection,
    /// The idle channels in confirm mode.
    free: Mutex<Vec<Channel>>,
    publishers: Semaphore,
    /// The event types that each module's queue is bound to, to declare the queue again if the
    /// broker loses it.
    declared: Mutex<HashMap<String, Vec<String>>>,
}

/// A connection that is opened when it is needed.
#[derive(Debug)]
struct BrokerConnection {
    address: Address,
    purpose: &'static str,
    /// The id of the plane that the virtual host must belong to.
    plane: Option<String>,
    state: tokio::sync::Mutex<ConnectionState>,
}

#[derive(Debug, Default)]
struct ConnectionState {
    connection: Option<Arc<Connection>>,
    failed: Option<ConnectFailure>,
}

#[derive(Debug)]
struct ConnectFailure {
    at: Instant,
    rest: Duration,
    reason: String,
}

/// Runs one exchange with the broker, for at most [`ANSWER_WAIT`].
async fn with_answer_deadline<T>(
    exchange: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, Cause> {
    ask_broker(BrokerAct::Other, exchange).await
}

/// Runs one exchange with the broker that the broker may refuse, for at most [`ANSWER_WAIT`]. The
/// error explains a refusal of this act.
async fn ask_broker<T>(
    act: BrokerAct,
    exchange: impl Future<Output = Result<T, lapin::Error>>,
) -> Result<T, Cause> {
    match tokio::time::timeout(ANSWER_WAIT, exchange).await {
        Ok(outcome) => outcome.map_err(|error| explain_error(act, error)),
        Err(_) => Err(format!("no answer within {} s", ANSWER_WAIT.as_secs()).into()),
    }
}

impl BrokerConnection {
    fn new(address: Address, purpose: &'static str) -> Self {
        Self { address, purpose, plane: None, state: tokio::sync::Mutex::default() }
    }

    /// Returns the open connection, or makes a new one. After a failed try it makes none for
    /// [`REST`], twice as long after each further failure, up to [`REST_MAX`]; meanwhile it returns
    /// the last error.
    async fn get_or_connect(&self) -> Result<Arc<Connection>, Cause> {
        let mut state = self.state.lock().await;
        if let Some(connection) =
            state.connection.as_ref().filter(|connection| connection.status().connected())
        {
            return Ok(connection.clone());
        }
        state.connection = None;
        if let Some(failed) = &state.failed
            && failed.at.elapsed() < failed.rest
        {
            return Err(failed.reason.clone().into());
        }
        match self.connect().await {
            Ok(connection) => {
                let connection = Arc::new(connection);
                *state = ConnectionState { connection: Some(connection.clone()), failed: None };
                Ok(connection)
            }
            Err(error) => {
                let rest =
                    state.failed.as_ref().map_or(REST, |failed| (failed.rest * 2).min(REST_MAX));
                state.failed =
                    Some(ConnectFailure { at: Instant::now(), rest, reason: error_chain(&*error) });
                Err(error)
            }
        }
    }

    async fn connect(&self) -> Result<Connection, Cause> {
        let name = format!("ion {} ({})", self.purpose, rustix::process::getpid().as_raw_nonzero());
        let properties = ConnectionProperties::default().with_connection_name(name.into());
        let runtime = lapin::runtime::default_runtime()?;
        let connecting = Connection::connect_uri_with_config(
            self.address.uri.clone(),
            properties,
            self.address.tls.clone(),
            runtime,
        );
        let connection = ask_broker(BrokerAct::Connect, connecting).await?;
        declare_exchanges(&connection).await?;
        if let Some(plane) = &self.plane {
            mark_virtual_host(&connection, plane).await?;
        }
        declare_dead_queue(&connection).await?;
        Ok(connection)
    }

    /// Opens a channel. If the current connection cannot open it, a new connection does.
    ///
    /// A connection cannot if it has just ended. Nor can it if its channel numbers have wrapped
    /// around (after 2,047) to a channel that the broker had closed: lapin keeps the reason for
    /// that, and refuses the number for good.
    async fn open_channel(&self) -> Result<Channel, Cause> {
        let connection = self.get_or_connect().await?;
        if let Ok(channel) = with_answer_deadline(connection.create_channel()).await {
            return Ok(channel);
        }
        self.drop_connection(&connection).await;
        with_answer_deadline(self.get_or_connect().await?.create_channel()).await
    }

    /// Drops a connection that does not answer. The next caller that needs one opens another.
    async fn drop_connection(&self, broken: &Arc<Connection>) {
        let mut state = self.state.lock().await;
        if state.connection.as_ref().is_some_and(|current| Arc::ptr_eq(current, broken)) {
            state.connection = None;
        }
    }
}

/// Marks the virtual host as this plane's. Fails if it belongs to another plane: each plane would
/// receive the other's messages and find no events for them.
///
/// The mark is an exchange, because no policy makes an exchange expire. The plane's id is in its
/// alternate exchange, the only argument of an exchange that a broker compares. Nothing is ever
/// published to it.
async fn mark_virtual_host(connection: &Connection, plane: &str) -> Result<(), Cause> {
    let channel = with_answer_deadline(connection.create_channel()).await?;
    let mut mark = FieldTable::default();
    let name = format!("{PLANE}.{plane}");
    mark.insert("alternate-exchange".into(), AMQPValue::LongString(name.as_str().into()));
    let options = ExchangeDeclareOptions {
        durable: true,
        internal: true,
        ..ExchangeDeclareOptions::default()
    };
    let declare = channel.exchange_declare(PLANE.into(), ExchangeKind::Fanout, options, mark);
    match ask_broker(BrokerAct::DeclareExchange, declare).await {
        Err(error) => match refusal::other_plane(&error) {
            Some(other) => Err(format!(
                "this virtual host belongs to plane {other}, and these documents are of plane \
                 {plane}: each plane needs a virtual host of its own (rabbitmqctl add_vhost NAME, \
                 and NAME as the path of ION_BUS); if the other plane is gone for good, remove the \
                 virtual host with all in it and make it again"
            )
            .into()),
            None => Err(error),
        },
        declared => declared,
    }
}

async fn declare_exchanges(connection: &Connection) -> Result<(), Cause> {
    let channel = with_answer_deadline(connection.create_channel()).await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    for exchange in [EVENTS, DEAD] {
        let declare = channel.exchange_declare(
            exchange.into(),
            ExchangeKind::Topic,
            durable,
            FieldTable::default(),
        );
        ask_broker(BrokerAct::DeclareExchange, declare).await?;
    }
    Ok(())
}

/// Declares the queue of dead letters. People look at dead letters again and again, and that must
/// not use up a delivery limit. From RabbitMQ 4.0 a queue without a delivery limit has one of 20,
/// and older versions cannot declare that there is none. The highest limit has the same effect.
async fn declare_dead_queue(connection: &Connection) -> Result<(), Cause> {
    let channel = with_answer_deadline(connection.create_channel()).await?;
    let mut arguments = quorum_arguments();
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(i32::MAX));
    let declare = channel.queue_declare(DEAD.into(), QueueDeclareOptions::durable(), arguments);
    ask_broker(BrokerAct::DeclareQueue, declare).await?;
    let all = QueueBindOptions::default();
    let bind = channel.queue_bind(DEAD.into(), DEAD.into(), "#".into(), all, FieldTable::default());
    ask_broker(BrokerAct::Bind, bind).await
}

fn quorum_arguments() -> FieldTable {
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("quorum".into()));
    arguments
}

/// Returns the arguments of a module's queue.
fn module_arguments() -> FieldTable {
    let mut arguments = quorum_arguments();
    let text = |text: &str| AMQPValue::LongString(text.into());
    arguments.insert("x-delivery-limit".into(), AMQPValue::LongInt(DELIVERY_LIMIT));
    arguments.insert("x-dead-letter-exchange".into(), text(DEAD));
    arguments.insert("x-dead-letter-strategy".into(), text("at-least-once"));
    arguments.insert("x-overflow".into(), text("reject-publish"));
    arguments
}

/// A channel in confirm mode, for one message at a time.
struct Publisher<'a> {
    bus: &'a Amqp,
    channel: Option<Channel>,
    _permit: SemaphorePermit<'a>,
}

impl Publisher<'_> {
    /// Publishes and waits for the confirm.
    async fn publish(
        mut self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Routed, Cause> {
        let channel = self.channel.take().expect("a publisher has its channel until it publishes");
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let confirmed = ask_broker(BrokerAct::Publish, async {
            let publish = channel.basic_publish(
                exchange.into(),
                routing_key.into(),
                options,
                body,
                properties,
            );
            publish.await?.await
        });
        match confirmed.await {
            Ok(confirmation) => {
                self.bus.free.lock().unwrap_or_else(PoisonError::into_inner).push(channel);
                match confirmation {
                    Confirmation::Ack(None) => Ok(Routed::To(1)),
                    Confirmation::Ack(Some(_)) => Ok(Routed::Nowhere),
                    Confirmation::Nack(_) => Err(REFUSED.into()),
                    Confirmation::NotRequested => Err("no confirm from the broker".into()),
                }
            }
            // The channel is dropped. The connection is kept: the next channel on it shows whether
            // it still works. One queue that does not confirm must not break the messages that
            // others are publishing.
            Err(error) => Err(error),
        }
    }
}

impl Amqp {
    /// Makes a bus on the broker of this URL. It connects at the first use, so that work that needs
    /// no broker does not depend on one.
    ///
    /// # Errors
    /// [`StoreError::Url`] for a URL that is wrong.
    pub fn open(url: &str) -> Result<Self, StoreError> {
        let address = Address::parse(url)?;
        Ok(Self {
            name: crate::without_credentials(url),
            publishing: BrokerConnection::new(address.clone(), "publishes"),
            consuming: BrokerConnection::new(address, "consumes"),
            free: Mutex::default(),
            publishers: Semaphore::new(PUBLISHERS),
            declared: Mutex::default(),
        })
    }

    /// Binds the bus to the plane with this id: it then refuses a virtual host that belongs to
    /// another plane.
    #[must_use]
    pub fn with_plane(mut self, id: &str) -> Self {
        for line in [&mut self.publishing, &mut self.consuming] {
            line.plane = Some(id.to_owned());
        }
        self
    }

    fn unavailable(&self, what: impl Into<String>) -> impl FnOnce(Cause) -> StoreError {
        let (store, what) = (self.name.clone(), what.into());
        move |source| StoreError::Unavailable { store, what, source }
    }

    async fn acquire_publisher(&self) -> Result<Publisher<'_>, Cause> {
        let permit = self.publishers.acquire().await?;
        let free = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let channel = match free.filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => {
                let channel = self.publishing.open_channel().await?;
                with_answer_deadline(channel.confirm_select(ConfirmSelectOptions::default()))
                    .await?;
                channel
            }
        };
        Ok(Publisher { bus: self, channel: Some(channel), _permit: permit })
    }

    async fn publish_to_exchange(
        &self,
        exchange: &str,
        routing_key: &str,
        body: &[u8],
        properties: BasicProperties,
    ) -> Result<Routed, Cause> {
        self.acquire_publisher().await?.publish(exchange, routing_key, body, properties).await
    }

    /// Declares a module's queue and binds it to these event types, through a channel of either
    /// connection.
    async fn declare_queue(
        &self,
        channel: &Channel,
        module: &str,
        event_types: &[String],
    ) -> Result<(), Cause> {
        let queue = queue_name(module);
        let declare = channel.queue_declare(
            queue.as_str().into(),
            QueueDeclareOptions::durable(),
            module_arguments(),
        );
        ask_broker(BrokerAct::DeclareQueue, declare).await?;
        for event_type in event_types {
            failpoint::delay("queue.binding");
            let bind = channel.queue_bind(
                queue.as_str().into(),
                EVENTS.into(),
                event_type.as_str().into(),
                QueueBindOptions::default(),
                FieldTable::default(),
            );
            ask_broker(BrokerAct::Bind, bind).await?;
        }
        Ok(())
    }

    /// Declares a module's queue, binds it to `event_types`, and unbinds it from the types of
    /// `former` that are not among them.
    async fn declare_and_rebind(
        &self,
        module: &str,
        event_types: &[String],
        former: &[String],
    ) -> Result<(), Cause> {
        let channel = self.publishing.open_channel().await?;
        self.declare_queue(&channel, module, event_types).await?;
        for gone in former.iter().filter(|former| !event_types.contains(former)) {
            let unbind = channel.queue_unbind(
                queue_name(module).as_str().into(),
                EVENTS.into(),
                gone.as_str().into(),
                FieldTable::default(),
            );
            ask_broker(BrokerAct::Bind, unbind).await?;
        }
        Ok(())
    }

    /// Declares a module's queue again, if this process has declared it before.
    async fn redeclare(&self, channel: &Channel, module: &str) -> Result<(), Cause> {
        let known =
            self.declared.lock().unwrap_or_else(PoisonError::into_inner).get(module).cloned();
        match known {
            Some(event_types) => self.declare_queue(channel, module, &event_types).await,
            None => Ok(()),
        }
    }

    /// Takes up to `limit` messages off a queue and holds them. The caller acknowledges or returns
    /// each message, or drops the channel.
    async fn hold_messages(
        &self,
        channel: &Channel,
        queue: &str,
        limit: usize,
    ) -> Result<Vec<Received>, Cause> {
        let mut held = Vec::new();
        while held.len() < limit {
            let get = channel.basic_get(queue.into(), BasicGetOptions::default());
            match ask_broker(BrokerAct::Receive, get).await? {
                Some(message) => held.push(message.delivery),
                None => break,
            }
        }
        Ok(held)
    }
}

/// Returns the properties of a message: persistent, and with the headers of CloudEvents' AMQP
/// binding, for other tools.
fn message_properties(message: &Message, headers: FieldTable) -> BasicProperties {
    let context = &message.context;
    let mut all = headers;
    for (key, value) in [
        ("cloudEvents:specversion", "1.0"),
        ("cloudEvents:id", context.event_id.as_str()),
        ("cloudEvents:type", &message.event_type),
        ("cloudEvents:source", &context.name),
        ("cloudEvents:correlationid", context.correlation_id.as_str()),
        ("cloudEvents:datacontenttype", "application/json"),
    ] {
        all.insert(key.into(), AMQPValue::LongString(value.into()));
    }
    BasicProperties::default()
        .with_delivery_mode(2)
        .with_content_type("application/json".into())
        .with_message_id(to_short_string(context.event_id.as_str()))
        .with_correlation_id(to_short_string(context.correlation_id.as_str()))
        .with_type(to_short_string(&message.event_type))
        .with_headers(all)
}

/// Cuts a text to 255 bytes, the most that a short string can hold.
fn to_short_string(text: &str) -> lapin::types::ShortString {
    let end = (0..=text.len().min(255)).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].into()
}

fn encode_message(message: &Message) -> Vec<u8> {
    serde_json::to_vec(message).expect("a message has string keys only, so it has a JSON form")
}

#[async_trait]
impl Bus for Amqp {
    async fn declare(
        &self,
        module: &str,
        event_types: &[String],
        former: &[String],
    ) -> Result<(), StoreError> {
        let declared = DECLARES.run(
            async |_| self.declare_and_rebind(module, event_types, former).await,
            // Somebody deleted the queue before it was bound to all types, or the broker is still
            // deleting one of the same name.
            |failed| is_missing(failed.error) || is_internal(failed.error),
        );
        declared
            .await
            .map_err(self.unavailable(format!("declaring the queue of module {module:?}")))?;
        let known = (module.to_owned(), event_types.to_vec());
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).extend([known]);
        Ok(())
    }

    async fn remove_queue(&self, module: &str) -> Result<(), StoreError> {
        self.declared.lock().unwrap_or_else(PoisonError::into_inner).remove(module);
        let removing = async {
            let channel = self.publishing.open_channel().await?;
            let queue = queue_name(module);
            let delete = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
            ask_broker(BrokerAct::Delete, delete).await
        };
        removing
            .await
            .map_err(self.unavailable(format!("removing the queue of module {module:?}")))?;
        Ok(())
    }

    async fn publish(&self, message: &Message) -> Result<Routed, StoreError> {
        let properties = message_properties(message, FieldTable::default());
        let published = self
            .publish_to_exchange(EVENTS, &message.event_type, &encode_message(message), properties)
            .await;
        published.map_err(self.unavailable("publishing"))
    }

    async fn send(&self, module: &str, message: &Message) -> Result<(), StoreError> {
        let properties = message_properties(message, FieldTable::default());
        let what = format!("sending to module {module:?}");
        // The default exchange routes to every queue by its name.
        match self
            .publish_to_exchange("", &queue_name(module), &encode_message(message), properties)
            .await
        {
            Ok(Routed::To(_)) => Ok(()),
            Ok(Routed::Nowhere) => Err(self.unavailable(what)("it has no queue".into())),
            Err(error) => Err(self.unavailable(what)(error)),
        }
    }

    async fn subscribe(
        self: Arc<Self>,
        module: &str,
        prefetch: usize,
    ) -> Result<Box<dyn Subscription>, StoreError> {
        let prefetch = u16::try_from(prefetch.max(1)).unwrap_or(u16::MAX);
        Ok(Box::new(subscriber::AmqpSubscriber::new(self, module, prefetch)))
    }

    /// Takes the messages off the queue for a moment and returns them. The broker counts each
    /// return, so a message that was returned [`REFRESHED_AT`] times is published to the queue
    /// again instead.
    async fn peek(&self, module: &str, limit: usize) -> Result<Vec<Message>, StoreError> {
        let queue = queue_name(module);
        let looking = async {
            let channel = self.publishing.open_channel().await?;
            let held = match self.hold_messages(&channel, &queue, limit).await {
                Err(error) if is_missing(&error) => return Ok(vec![]),
                held => held?,
            };
            let mut messages = Vec::new();
            for received in held {
                messages.extend(serde_json::from_slice(&received.data).ok());
                if times_returned(&received) >= REFRESHED_AT {
                    let properties =
                        received.properties.clone().with_headers(republish_headers(&received));
                    self.publish_to_exchange("", &queue, &received.data, properties).await?;
                    with_answer_deadline(received.acker.ack(BasicAckOptions::default())).await?;
                } else {
                    let requeue = BasicNackOptions { requeue: true, ..BasicNackOptions::default() };
                    with_answer_deadline(received.acker.nack(requeue)).await?;
                }
            }
            Ok(messages)
        };
        looking
            .await
            .map_err(self.unavailable(format!("looking into the queue of module {module:?}")))
    }

    async fn count_messages(&self, module: &str, most: usize) -> Result<Option<usize>, StoreError> {
        let queue = queue_name(module);
        let counting = async {
            let channel = self.publishing.open_channel().await?;
            let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
            match with_answer_deadline(channel.queue_declare(
                queue.as_str().into(),
                passive,
                FieldTable::default(),
            ))
            .await
            {
                Err(error) if is_missing(&error) => Ok(None),
                Err(error) => Err(error),
                Ok(declared) => {
                    let count = usize::try_from(declared.message_count()).unwrap_or(usize::MAX);
                    let _ = channel.close(200, "".into()).await;
                    Ok(Some(count.min(most)))
                }
            }
        };
        counting
            .await
            .map_err(self.unavailable(format!("counting the messages of module {module:?}")))
    }

    async fn add_dead_letter(&self, letter: DeadLetter) -> Result<(), StoreError> {
        let what = format!("adding a dead letter of module {:?}", letter.module);
        dead::add_dead_letter(self, letter).await.map_err(self.unavailable(what))
    }

    async fn list_dead_letters(&self, limit: usize) -> Result<Vec<DeadLetter>, StoreError> {
        dead::list(self, limit).await.map_err(self.unavailable("listing dead letters"))
    }

    async fn remove_dead_letters(&self, letters: &[(String, String)]) -> Result<usize, StoreError> {
        dead::remove_dead_letters(self, letters)
            .await
            .map_err(self.unavailable("removing dead letters"))
    }

    async fn inspect(&self, modules: &[String]) -> Result<BusReport, StoreError> {
        inspect::inspect(self, modules).await.map_err(self.unavailable("looking at Ion's queues"))
    }
}

/// Returns how often the message was returned to its queue, by the broker's count.
fn times_returned(received: &Received) -> i64 {
    let headers = received.properties.headers().as_ref();
    match headers.and_then(|headers| headers.inner().get("x-delivery-count")) {
        Some(AMQPValue::LongLongInt(count)) => *count,
        Some(AMQPValue::LongInt(count)) => i64::from(*count),
        Some(AMQPValue::LongUInt(count)) => i64::from(*count),
        _ => 0,
    }
}

/// Returns the headers for publishing a message again: all except the broker's own.
fn republish_headers(received: &Received) -> FieldTable {
    let mut fresh = FieldTable::default();
    for (key, value) in received.properties.headers().iter().flat_map(|headers| headers.inner()) {
        if !key.as_str().starts_with("x-") {
            fresh.insert(key.clone(), value.clone());
        }
    }
    fresh
}
