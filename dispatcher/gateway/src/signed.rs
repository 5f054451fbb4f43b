//! Signatures of webhooks: checks that the sender of a body has the secret.
//!
//! GitHub signs the body and gives each delivery an id in a header. Stripe signs a time and the
//! body, and the body holds the event's id. Both use HMAC with SHA-256. A webhook may have several
//! secrets while one replaces another. Every signature of the request is compared with the HMAC of
//! every secret, in constant time, so the time of a comparison reveals nothing about a correct
//! signature.

use axum::http::HeaderMap;
use hmac::digest::KeyInit as _;
use hmac::{Hmac, Mac as _};
use ion_model::clock::Millis;
use serde::Deserialize;
use sha2::Sha256;
use subtle::{Choice, ConstantTimeEq as _};

use super::auth::unhex;
use super::problem::{Problem, ProblemKind};

/// How far the time of a signature may be from now: the value that Stripe's own libraries allow.
/// Longer lets an attacker who saw a request replay it for longer, shorter refuses requests that
/// were delayed.
const TOLERANCE_SECONDS: u64 = 300;

/// The maximum number of signatures of one request that are checked: Stripe sends one for each of
/// its secrets.
const SIGNATURES_MAX: usize = 16;

/// The minimum bytes of a secret: a shorter one can be guessed.
const SECRET_MIN: usize = 16;

/// The maximum bytes of a delivery's id.
const ID_MAX: usize = 255;

/// The way a sender signs its requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SignatureScheme {
    /// `X-Hub-Signature-256: sha256=HEX` and `X-GitHub-Delivery: ID`. Gitea and Forgejo sign the
    /// same way.
    Github,
    /// `Stripe-Signature: t=SECONDS,v1=HEX`.
    Stripe,
}

impl SignatureScheme {
    /// Returns the scheme of this name.
    pub(super) fn from_name(name: &str) -> Option<Self> {
        match name {
            "github" => Some(Self::Github),
            "stripe" => Some(Self::Stripe),
            _ => None,
        }
    }

    fn header(self) -> &'static str {
        match self {
            Self::Github => "x-hub-signature-256",
            Self::Stripe => "stripe-signature",
        }
    }

    /// Reads the signature headers of a request. This needs no byte of the body.
    pub(super) fn read_signatures(self, headers: &HeaderMap) -> Result<SignatureClaim, Problem> {
        let name = self.header();
        let value = headers
            .get(name)
            .ok_or_else(|| unsigned(format!("the request has no header {name}")))?;
        let wrong =
            || unsigned(format!("the header {name} is not a signature of this webhook's scheme"));
        let value = value.to_str().map_err(|_| wrong())?;
        let mut claim = SignatureClaim { time: None, signatures: vec![] };
        match self {
            Self::Github => claim.add(value.strip_prefix("sha256=").ok_or_else(wrong)?),
            Self::Stripe => {
                for part in value.split(',') {
                    match part.trim().split_once('=') {
                        Some(("t", time)) => claim.time = Some(time.to_owned()),
                        Some(("v1", signature)) => claim.add(signature),
                        // Signatures of other versions add no security.
                        _ => {}
                    }
                }
                if claim.time.is_none() {
                    return Err(wrong());
                }
            }
        }
        if claim.signatures.is_empty() { Err(wrong()) } else { Ok(claim) }
    }

    /// Returns the id and the kind of a delivery whose signature was checked.
    pub(super) fn read_delivery(
        self,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<WebhookDelivery, Problem> {
        let (id, event) = match self {
            Self::Github => {
                let text_of = |name: &str| {
                    headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned)
                };
                (text_of("x-github-delivery"), text_of("x-github-event"))
            }
            Self::Stripe => {
                #[derive(Deserialize)]
                struct Named {
                    id: Option<String>,
                    r#type: Option<String>,
                }
                let wrong = |error| {
                    Problem::new(
                        ProblemKind::Malformed,
                        format!("the body is not a Stripe event: {error}"),
                    )
                };
                let named: Named = serde_json::from_slice(body).map_err(wrong)?;
                (named.id, named.r#type)
            }
        };
        let fits = |id: &String| {
            (1..=ID_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic())
        };
        let Some(id) = id.filter(fits) else {
            let place = match self {
                Self::Github => "header X-GitHub-Delivery",
                Self::Stripe => "member \"id\" of the body",
            };
            let detail = format!("the {place} is needed: 1 to {ID_MAX} printable characters");
            return Err(Problem::new(ProblemKind::Malformed, detail));
        };
        Ok(WebhookDelivery { id, event: event.unwrap_or_default() })
    }
}

/// The id and the kind of a delivery.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct WebhookDelivery {
    /// The delivery's id: the same when the delivery is sent again.
    pub(super) id: String,
    /// The kind of event, as the sender names it.
    pub(super) event: String,
}

/// The signatures that a request claims, not checked yet.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct SignatureClaim {
    /// The time of signing in seconds, as text, because the text itself is signed.
    time: Option<String>,
    signatures: Vec<[u8; 32]>,
}

impl SignatureClaim {
    fn add(&mut self, signature: &str) {
        if self.signatures.len() < SIGNATURES_MAX {
            self.signatures.extend(unhex(signature.trim()));
        }
    }
}

/// The secrets of a webhook: one, or several while one replaces another.
#[derive(Clone, Debug)]
pub(super) struct WebhookSecrets(Vec<Hmac<Sha256>>);

/// A secret can be guessed.
#[derive(Debug, thiserror::Error)]
#[error(
    "a secret is short: it needs at least {SECRET_MIN} characters; `openssl rand -hex 32` prints a \
     good one"
)]
pub struct ShortSecret;

impl WebhookSecrets {
    /// Builds the secrets from texts; surrounding white space, such as the end of a line, is
    /// ignored.
    pub(super) fn new<'t>(texts: impl IntoIterator<Item = &'t [u8]>) -> Result<Self, ShortSecret> {
        let secret = |text: &[u8]| {
            let text = text.trim_ascii();
            if text.len() < SECRET_MIN {
                return Err(ShortSecret);
            }
            Ok(Hmac::new_from_slice(text).expect("HMAC takes keys of any length"))
        };
        texts.into_iter().map(secret).collect::<Result<_, _>>().map(Self)
    }

    /// Starts the check of a body. Its pieces follow by [`SignatureCheck::update`].
    pub(super) fn begin_check(&self, claim: SignatureClaim) -> SignatureCheck {
        let mut made = self.0.clone();
        if let Some(time) = &claim.time {
            made.iter_mut().for_each(|mac| {
                mac.update(time.as_bytes());
                mac.update(b".");
            });
        }
        SignatureCheck { made, claim }
    }
}

/// A running check of a body against all secrets.
pub(super) struct SignatureCheck {
    made: Vec<Hmac<Sha256>>,
    claim: SignatureClaim,
}

impl SignatureCheck {
    /// Adds the next piece of the body.
    pub(super) fn update(&mut self, piece: &[u8]) {
        self.made.iter_mut().for_each(|mac| mac.update(piece));
    }

    /// Refuses a body that is not signed with one of the secrets, or whose signing time is too far
    /// from now.
    pub(super) fn finish(self, now: Millis) -> Result<(), Problem> {
        let mut signed = Choice::from(0);
        for mac in self.made {
            let made: [u8; 32] = mac.finalize().into_bytes().into();
            for signature in &self.claim.signatures {
                signed |= made.ct_eq(signature);
            }
        }
        if !bool::from(signed) {
            return Err(unsigned("no signature of the request matches a secret of this webhook"));
        }
        let Some(time) = &self.claim.time else { return Ok(()) };
        let time: Millis = time
            .parse()
            .map_err(|_| unsigned("the time of the signature is not a number of seconds"))?;
        let off = time.abs_diff(now / 1000);
        if off > TOLERANCE_SECONDS {
            return Err(unsigned(format!(
                "the signature's time differs by {off} s from this machine's clock, and \
                 {TOLERANCE_SECONDS} s are allowed; check the clock"
            )));
        }
        Ok(())
    }
}

fn unsigned(detail: impl Into<String>) -> Problem {
    Problem::new(ProblemKind::Unsigned, detail)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let pair = |(name, value): &(&str, &str)| {
            (name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap())
        };
        pairs.iter().map(pair).collect()
    }

    fn check(
        scheme: SignatureScheme,
        secrets: &[&str],
        signature: &str,
        body: &[u8],
        now: Millis,
    ) -> Result<(), ProblemKind> {
        let secrets = WebhookSecrets::new(secrets.iter().map(|secret| secret.as_bytes())).unwrap();
        let run = || {
            let mut check = secrets
                .begin_check(scheme.read_signatures(&headers(&[(scheme.header(), signature)]))?);
            let (one, other) = body.split_at(body.len() / 2);
            check.update(one);
            check.update(other);
            check.finish(now * 1000)
        };
        run().map_err(|problem: Problem| problem.kind())
    }

    /// Uses the example in GitHub's manual.
    #[test]
    fn a_body_that_github_signed_is_known() {
        const SECRET: &str = "It's a Secret to Everybody";
        const SIGNATURE: &str =
            "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17";
        let of = |secrets: &[&str], signature: &str, body: &[u8]| {
            check(SignatureScheme::Github, secrets, signature, body, 0)
        };
        assert_eq!(of(&[SECRET], SIGNATURE, b"Hello, World!"), Ok(()));
        assert_eq!(
            of(
                &["another secret of ours", "It's a Secret to Everybody\n"],
                SIGNATURE,
                b"Hello, World!"
            ),
            Ok(())
        );
        for (signature, body) in [
            (SIGNATURE, &b"Hello, World?"[..]),
            (&SIGNATURE.replace("757", "758"), b"Hello, World!"),
            (&SIGNATURE[7..], b"Hello, World!"),
            (&SIGNATURE[..60], b"Hello, World!"),
            ("sha256=", b"Hello, World!"),
            ("sha1=757107ea0eb2509fc211221cce984b8a37570b6d", b"Hello, World!"),
        ] {
            assert_eq!(of(&[SECRET], signature, body), Err(ProblemKind::Unsigned), "{signature}");
        }
        assert_eq!(
            of(&["another secret of ours"], SIGNATURE, b"Hello, World!"),
            Err(ProblemKind::Unsigned)
        );
        assert_eq!(
            SignatureScheme::Github
                .read_signatures(&HeaderMap::new())
                .map_err(|problem| problem.kind()),
            Err(ProblemKind::Unsigned)
        );
        let named = headers(&[("x-github-delivery", "72d3162e"), ("x-github-event", "push")]);
        let delivery = WebhookDelivery { id: "72d3162e".into(), event: "push".into() };
        assert_eq!(SignatureScheme::Github.read_delivery(&named, b"").unwrap(), delivery);
        for pairs in [&[][..], &[("x-github-delivery", "")], &[("x-github-delivery", "a b")]] {
            assert!(
                SignatureScheme::Github.read_delivery(&headers(pairs), b"").is_err(),
                "{pairs:?}"
            );
        }
    }

    #[test]
    fn a_body_that_stripe_signed_is_known_for_a_while() {
        // printf '1492774577.{"id":"evt_1"}' | openssl dgst -sha256 -hmac whsec_0123456789abcdef
        const SECRET: &str = "whsec_0123456789abcdef";
        const SIGNATURE: &str = "c5d42d7dd5598cf53c4dc40893eabe2528694c55fd419bc87cb6d84060d6dbf9";
        const BODY: &[u8] = b"{\"id\":\"evt_1\"}";
        let wrong = "0".repeat(64);
        let of =
            |signature: &str, now| check(SignatureScheme::Stripe, &[SECRET], signature, BODY, now);
        for signature in [
            format!("t=1492774577,v1={SIGNATURE}"),
            format!("t=1492774577,v1={wrong},v1={SIGNATURE},v0={wrong}"),
            format!("v1={SIGNATURE}, t=1492774577"),
        ] {
            for now in [1_492_774_577, 1_492_774_577 + 300, 1_492_774_577 - 300] {
                assert_eq!(of(&signature, now), Ok(()), "{signature}");
            }
            for now in [1_492_774_577 + 301, 1_492_774_577 - 301, 0] {
                assert_eq!(of(&signature, now), Err(ProblemKind::Unsigned), "{signature}");
            }
        }
        for signature in [
            format!("t=1492774578,v1={SIGNATURE}"),
            format!("t=1492774577,v0={SIGNATURE}"),
            format!("t=1492774577,v1={wrong}"),
            format!("v1={SIGNATURE}"),
            "t=1492774577".into(),
            "".into(),
        ] {
            assert_eq!(of(&signature, 1_492_774_577), Err(ProblemKind::Unsigned), "{signature}");
        }
        let delivery = SignatureScheme::Stripe
            .read_delivery(&HeaderMap::new(), b"{\"id\":\"evt_1\",\"type\":\"invoice.paid\"}");
        assert_eq!(
            delivery.unwrap(),
            WebhookDelivery { id: "evt_1".into(), event: "invoice.paid".into() }
        );
        assert!(
            SignatureScheme::Stripe.read_delivery(&HeaderMap::new(), b"{\"type\":\"x\"}").is_err()
        );
    }

    #[test]
    fn a_secret_that_can_be_guessed_is_refused() {
        assert!(WebhookSecrets::new([&b"short\n                    "[..]]).is_err());
    }
}
