//! Explains the broker's refusals: the text names what is missing and the way out.
//!
//! RabbitMQ before 3.12 names only the resource, not the right that is missing. The right follows
//! from the act that was refused.

use lapin::protocol::{AMQPError, AMQPErrorKind, AMQPHardError, AMQPSoftError};

use super::{Cause, DEAD, PLANE};

/// RabbitMQ's pattern for what Ion's user may configure and read.
const OWN: &str = r"ion\..*";

/// RabbitMQ's pattern for what Ion's user may write to. It includes the default exchange, through
/// which Ion reaches one module's queue.
const WRITTEN: &str = r"ion\..*|amq\.default";

/// A request to the broker, by the rights that it needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BrokerAct {
    /// Open a connection.
    Connect,
    /// Declare an exchange.
    DeclareExchange,
    /// Declare a queue that has a dead letter exchange.
    DeclareQueue,
    /// Bind a queue to an exchange, or unbind it.
    Bind,
    /// Publish a message.
    Publish,
    /// Receive messages.
    Receive,
    /// Delete a queue.
    Delete,
    /// A request that needs no right.
    Other,
}

/// An explained refusal of the broker's.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
struct Refused {
    words: String,
    #[source]
    answer: lapin::Error,
}

/// Returns the error of an act. If the broker's text is known, the error says what is missing and
/// the way out.
pub(super) fn explain_error(act: BrokerAct, error: lapin::Error) -> Cause {
    let words = match error.kind() {
        lapin::ErrorKind::ProtocolError(answer) => explain_refusal(act, answer),
        _ => None,
    };
    match words {
        Some(words) => Refused { words, answer: error }.into(),
        None => error.into(),
    }
}

/// Returns the broker's own error, if the error came from the broker.
pub(super) fn broker_error(error: &Cause) -> Option<&AMQPError> {
    let own = error.downcast_ref::<Refused>().map(|refused| &refused.answer);
    match own.or_else(|| error.downcast_ref())?.kind() {
        lapin::ErrorKind::ProtocolError(answer) => Some(answer),
        _ => None,
    }
}

/// Returns whether the broker refused because the user lacks a right.
pub(super) fn lacks_right(error: &Cause) -> bool {
    broker_error(error)
        .is_some_and(|answer| answer.get_message().as_str().contains("refused for user"))
}

/// Returns whether the broker reported that the queue or exchange does not exist.
pub(super) fn is_missing(error: &Cause) -> bool {
    broker_error(error)
        .is_some_and(|answer| *answer.kind() == AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND))
}

/// Returns whether the broker reported a fault of its own. RabbitMQ answers so, and closes the
/// connection, when a quorum queue is declared while one of the same name is being deleted.
pub(super) fn is_internal(error: &Cause) -> bool {
    broker_error(error)
        .is_some_and(|answer| *answer.kind() == AMQPErrorKind::Hard(AMQPHardError::INTERNALERROR))
}

/// Returns the id of the plane that the virtual host belongs to, if the error is the broker's
/// refusal of another plane's mark.
pub(super) fn other_plane(error: &Cause) -> Option<String> {
    let answer = broker_error(error)?;
    let is_mark = *answer.kind() == AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED)
        && answer.get_message().as_str().contains("alternate-exchange");
    // RabbitMQ before 3.12 says "current is 'mark'", later ones "current is the value 'mark'".
    let current = answer.get_message().as_str().split_once("current is ").filter(|_| is_mark)?.1;
    let mark = current.split('\'').nth(1)?;
    Some(
        mark.strip_prefix(PLANE).and_then(|mark| mark.strip_prefix('.')).unwrap_or(mark).to_owned(),
    )
}

fn explain_refusal(act: BrokerAct, answer: &AMQPError) -> Option<String> {
    let text = answer.get_message().as_str();
    match answer.kind() {
        AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED) => explain_access_refused(act, text),
        AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED) => explain_not_allowed(text),
        AMQPErrorKind::Soft(AMQPSoftError::NOTFOUND) => {
            let what = quoted_after(text, "no queue ").map(|queue| format!("queue {queue:?}"));
            let what = what
                .or_else(|| Some(format!("exchange {:?}", quoted_after(text, "no exchange ")?)))?;
            Some(format!(
                "{what} is missing; start a dispatcher that serves it, which declares it again"
            ))
        }
        AMQPErrorKind::Soft(AMQPSoftError::PRECONDITIONFAILED) => explain_precondition_failed(text),
        AMQPErrorKind::Soft(AMQPSoftError::RESOURCELOCKED) => Some(format!(
            "queue {:?} belongs exclusively to another connection; end that connection, or remove \
             the queue: Ion declares it again",
            quoted_after(text, "queue ")?
        )),
        AMQPErrorKind::Hard(AMQPHardError::NOTIMPLEMENTED | AMQPHardError::COMMANDINVALID) => Some(
            "the broker lacks something that Ion needs; RabbitMQ 3.10 is the oldest that has it all"
            .into(),
        ),
        _ => None,
    }
}

fn explain_access_refused(act: BrokerAct, text: &str) -> Option<String> {
    if act == BrokerAct::Connect {
        return Some(
            "the broker knows no such user or key: check the name and the password in the URL \
             (RabbitMQ accepts the user guest only from its own machine)"
                .into(),
        );
    }
    if text.contains("in exclusive use") {
        return Some("another reader has the queue exclusively at this moment; try again".into());
    }
    let user = quoted_after(text, "refused for user ")?;
    let vhost = quoted_after(text, "in vhost ")?;
    let queue = quoted_after(text, "access to queue ").map(|name| ("queue", name));
    let (kind, name) =
        queue.or_else(|| Some(("exchange", quoted_after(text, "access to exchange ")?)))?;
    // Newer brokers name the right, just before the word "access".
    let named = text.split(" access to ").next().and_then(|before| before.rsplit(' ').next());
    let right = named.filter(|word| ["configure", "write", "read"].contains(word));
    let right = right.or_else(|| needed_right(act, kind, name)).unwrap_or("use");
    Some(format!(
        "user {user:?} lacks the right to {right} {kind} {name:?} in vhost {vhost:?}; {}",
        grant_advice(user, vhost)
    ))
}

/// Returns the right that an act on a resource of this kind needs, from RabbitMQ's table of rights.
fn needed_right(act: BrokerAct, kind: &str, name: &str) -> Option<&'static str> {
    match (act, kind) {
        // The mark of a plane names an alternate exchange, which takes two more rights: to read the
        // mark, and to write to the alternate exchange.
        (BrokerAct::DeclareExchange, _) if name == PLANE => Some("read"),
        (BrokerAct::DeclareExchange, _) if name.starts_with(PLANE) => Some("write"),
        (BrokerAct::DeclareExchange | BrokerAct::Delete, _) => Some("configure"),
        (BrokerAct::DeclareQueue | BrokerAct::Publish, "exchange") | (BrokerAct::Bind, "queue") => {
            Some("write")
        }
        (BrokerAct::Bind, _) | (BrokerAct::Receive, _) => Some("read"),
        // An exchange of the same name was declared just before. That takes the right to configure
        // this name, so the user has that right.
        (BrokerAct::DeclareQueue, _) if name == DEAD => Some("read"),
        // Declaring a queue with a dead letter exchange takes both rights, and an old broker does
        // not say which one is missing.
        (BrokerAct::DeclareQueue, _) => Some("configure or read"),
        (BrokerAct::Publish, _) | (BrokerAct::Connect, _) | (BrokerAct::Other, _) => None,
    }
}

/// Returns the advice how to grant all rights.
fn grant_advice(user: &str, vhost: &str) -> String {
    format!(
        "grant configure and read on {OWN} and write on {WRITTEN}: rabbitmqctl set_permissions -p \
         '{vhost}' '{user}' '{OWN}' '{WRITTEN}' '{OWN}'"
    )
}

fn explain_not_allowed(text: &str) -> Option<String> {
    // The broker writes "vhost NAME not found", without quotes around the name.
    if let Some(vhost) =
        text.split("vhost ").nth(1).and_then(|rest| rest.strip_suffix(" not found"))
    {
        return Some(format!(
            "the vhost is missing: correct the path of the URL, or make it with rabbitmqctl \
             add_vhost '{vhost}'"
        ));
    }
    if text.contains("limit") {
        return Some(
            "the broker takes no more connections of this user or vhost; raise its limit".into(),
        );
    }
    if text.contains("is down") {
        return Some("the vhost is down; rabbitmqctl restart_vhost starts it again".into());
    }
    let (vhost, user) =
        (quoted_after(text, "access to vhost ")?, quoted_after(text, "refused for user ")?);
    Some(format!("vhost {vhost:?} is closed to user {user:?}; {}", grant_advice(user, vhost)))
}

fn explain_precondition_failed(text: &str) -> Option<String> {
    if text.contains("inequivalent arg") {
        if let Some(queue) = quoted_after(text, "for queue ") {
            return Some(format!(
                "queue {queue:?} is there and is not as Ion declares it; remove it with \
                 rabbitmqctl delete_queue '{queue}': Ion declares it again as it must be"
            ));
        }
        let exchange = quoted_after(text, "for exchange ")?;
        return Some(format!(
            "exchange {exchange:?} is there and is not as Ion declares it; remove it (on the \
             broker's page, or with rabbitmqadmin): Ion declares it again as it must be"
        ));
    }
    let unknown = text.contains("x-queue-type") || text.contains("invalid arg");
    unknown.then(|| {
        "the broker has no quorum queues as Ion needs them; RabbitMQ 3.10 is the oldest that does"
            .to_owned()
    })
}

/// Returns the text in the quotation marks that follow these words.
fn quoted_after<'t>(text: &'t str, words: &str) -> Option<&'t str> {
    let quoted = text.split_once(words)?.1.strip_prefix('\'')?;
    Some(quoted.split_once('\'')?.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explain_text(act: BrokerAct, kind: AMQPErrorKind, text: &str) -> String {
        explain_refusal(act, &AMQPError::new(kind, text.into())).unwrap_or_default()
    }

    #[test]
    fn old_and_new_brokers_are_understood() {
        let access = AMQPErrorKind::Soft(AMQPSoftError::ACCESSREFUSED);
        let old =
            "ACCESS_REFUSED - access to queue 'ion.module.a' in vhost '/v' refused for user 'u'";
        let new = "ACCESS_REFUSED - configure access to queue 'ion.module.a' in vhost '/v' \
                   refused for user 'u'";
        let answer = explain_text(BrokerAct::DeclareQueue, access.clone(), old);
        assert!(
            answer.contains("configure or read queue \"ion.module.a\" in vhost \"/v\""),
            "{answer}"
        );
        let answer = explain_text(BrokerAct::DeclareQueue, access.clone(), new);
        assert!(answer.contains("right to configure queue"), "{answer}");
        let exclusive = "ACCESS_REFUSED - queue 'ion.dead' in vhost '/' in exclusive use";
        assert!(explain_text(BrokerAct::Receive, access, exclusive).contains("try again"));
        let hard = AMQPErrorKind::Hard(AMQPHardError::NOTALLOWED);
        let limit = "NOT_ALLOWED - access to vhost '/' refused for user 'u': vhost connection \
                     limit (1) is reached";
        assert!(explain_text(BrokerAct::Connect, hard, limit).contains("raise its limit"));
    }
}
