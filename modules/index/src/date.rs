//! Reads the dates of items.

use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::fmt::rfc2822;
use jiff::tz::TimeZone;
use serde_json::Value;

/// A number of seconds below this is a date before the year 5138. Numbers from here on are
/// milliseconds, which as seconds would be further away than any date of an item.
const SECONDS_MAX: i64 = 100_000_000_000;

/// Reads a date: RFC 3339 with or without a zone, a day alone, the form of e-mails and feeds
/// (RFC 2822), or a number of seconds or milliseconds since 1970. A date without a zone is in UTC.
pub(crate) fn parse_date(value: &Value) -> Option<Timestamp> {
    match value {
        Value::Number(number) => from_number(number.as_f64()?),
        Value::String(text) => parse_text(text.trim()),
        _ => None,
    }
}

fn parse_text(text: &str) -> Option<Timestamp> {
    let in_utc = |civil: DateTime| TimeZone::UTC.to_timestamp(civil).ok();
    text.parse::<Timestamp>()
        .ok()
        .or_else(|| text.parse::<DateTime>().ok().and_then(in_utc))
        .or_else(|| text.parse::<Date>().ok().and_then(|day| in_utc(day.at(0, 0, 0, 0))))
        .or_else(|| rfc2822::DateTimeParser::new().parse_timestamp(text).ok())
        .or_else(|| from_number(text.parse().ok()?))
}

#[expect(clippy::cast_possible_truncation, reason = "a cast to an integer saturates")]
fn from_number(number: f64) -> Option<Timestamp> {
    if !number.is_finite() {
        return None;
    }
    let whole = number as i64;
    if whole.abs() < SECONDS_MAX {
        Timestamp::from_millisecond((number * 1000.0) as i64).ok()
    } else {
        Timestamp::from_millisecond(whole).ok()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_usual_forms_are_the_same_date() {
        for value in [
            json!("2026-11-02T03:04:05Z"),
            json!("2026-11-02T05:04:05+02:00"),
            json!(" 2026-11-02T03:04:05 "),
            json!("2026-11-02 03:04:05"),
            json!("Mon, 02 Nov 2026 03:04:05 GMT"),
            json!("Mon, 2 Nov 2026 04:04:05 +0100"),
            json!(1_793_588_645),
            json!(1_793_588_645_000_i64),
            json!("1793588645"),
        ] {
            let found = parse_date(&value).unwrap_or_else(|| panic!("{value} is not read"));
            assert_eq!(found.to_string(), "2026-11-02T03:04:05Z", "{value}");
        }
        assert_eq!(parse_date(&json!("2026-11-02")).unwrap().to_string(), "2026-11-02T00:00:00Z");
        let fraction = parse_date(&json!(1.5)).unwrap();
        assert_eq!(fraction.as_millisecond(), 1500);
    }

    #[test]
    fn other_values_are_no_dates() {
        for value in [
            json!("yesterday"),
            json!(""),
            json!(null),
            json!(true),
            json!({"a": 1}),
            json!("2026-13-01"),
            json!(1e300),
        ] {
            assert_eq!(parse_date(&value), None, "{value}");
        }
    }
}
